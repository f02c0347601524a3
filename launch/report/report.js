"use strict";
/* Draws the charts, and opens an image: every band, false colour, the spectrum of the pixel that is pointed at. No network, no storage. */
(() => {
  const json = (id) => JSON.parse(document.getElementById(id).textContent);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const coarse = matchMedia("(pointer: coarse)").matches; // a finger that drags over a chart wants to scroll the page
  const buttons = [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]]; // none that hands a chart to a server
  const config = { displaylogo: false, displayModeBar: coarse ? false : "hover", modeBarButtons: buttons };

  /* charts */
  const dressed = (layout) => {
    const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--soft"), automargin: true };
    return {
      margin: { l: 10, r: 10, t: 10, b: 10 }, dragmode: coarse ? false : "zoom", colorway: ["#3b82c4", "#d9632a", "#3a9d5d", "#9467bd", "#b59a1f"],
      legend: { orientation: "h", yanchor: "bottom", y: 1.01, x: 0 }, ...layout,
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--line"), activecolor: colour("--accent") },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("--ink"), family: "system-ui, sans-serif", size: 12 },
      hoverlabel: { bgcolor: colour("--paper"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
      xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
    };
  };
  const drawn = new Map(); // element → its layout as written, for a change between light and dark
  const resized = new ResizeObserver((seen) => seen.forEach(({ target }) => { if (target.clientWidth) Plotly.Plots.resize(target); }));
  const draw = (element, chart) => {
    if (!drawn.has(element)) resized.observe(element);
    drawn.set(element, chart.layout);
    return Plotly.react(element, chart.data, dressed(chart.layout), config);
  };
  dark.addEventListener("change", () => drawn.forEach((layout, element) => Plotly.react(element, element.data, dressed(layout), config)));
  const charts = json("chart-data");
  for (const element of document.querySelectorAll("[data-chart]")) draw(element, charts[element.dataset.chart]);

  /* an image, opened */
  const view = json("image-data");
  const dialog = document.getElementById("viewer");
  const [C, H, W] = view.shape;
  const part = (name) => dialog.querySelector(`[data-part=${name}]`);
  const canvas = part("image"), slider = part("band"), chart = part("spectrum"), labelling = part("labels"), colouring = part("colour");
  const order = view.nm.map((_, c) => c).sort((a, b) => view.nm[a] - view.nm[b]); // the slider runs from short to long waves
  const nm = order.map((c) => view.nm[c]);
  const value = (c, q) => view.low[c] + view.step[c] * q;
  const grey = view.nm.map((_, c) => Uint8Array.from({ length: 256 }, (_, q) => {
    const share = (value(c, q) - view.grey_low[c]) / Math.max(view.grey_high[c] - view.grey_low[c], 1e-9);
    return 255 * Math.sqrt(Math.min(Math.max(share, 0), 1)); // as in the pictures of the page
  }));
  const marks = [null, [222, 60, 60], [70, 120, 235], [235, 200, 60]]; // background, artery, vein, optic nerve head
  const state = { image: 0, band: 0, colour: true, labels: false, x: W >> 1, y: H >> 1, counts: null, classes: null };

  const pixels = async (source, height) => { // the counts of a grey PNG, one a pixel
    const picture = new Image();
    await new Promise((done, failed) => Object.assign(picture, { onload: done, onerror: failed, src: source }));
    const sheet = Object.assign(document.createElement("canvas"), { width: W, height });
    const context = sheet.getContext("2d", { willReadFrequently: true });
    context.drawImage(picture, 0, 0);
    return context.getImageData(0, 0, W, height).data.filter((_, i) => i % 4 === 0);
  };

  const paint = () => {
    const context = canvas.getContext("2d"), image = context.createImageData(W, H), out = image.data, size = H * W;
    const bands = state.colour ? view.rgb : [order[state.band], order[state.band], order[state.band]];
    for (let i = 0; i < size; i++) {
      const mark = state.labels && state.classes ? marks[state.classes[i]] : null;
      for (let k = 0; k < 3; k++) {
        const shown = grey[bands[k]][state.counts[bands[k] * size + i]];
        out[4 * i + k] = mark ? 0.5 * shown + 0.5 * mark[k] : shown;
      }
      out[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    const arm = Math.max(2, Math.round(W / 24));
    context.strokeStyle = "#fff";
    context.globalCompositeOperation = "difference"; // a cross that is seen on bright and on dark
    context.beginPath();
    context.moveTo(state.x - arm, state.y + 0.5); context.lineTo(state.x + arm + 1, state.y + 0.5);
    context.moveTo(state.x + 0.5, state.y - arm); context.lineTo(state.x + 0.5, state.y + arm + 1);
    context.stroke();
    context.globalCompositeOperation = "source-over";
    part("wavelength").textContent = state.colour ? view.rgb.map((c) => view.nm[c]).join(", ") + " nm" : `${nm[state.band]} nm`;
    slider.setAttribute("aria-valuetext", `${nm[state.band]} nm`);
    colouring.setAttribute("aria-pressed", state.colour);
    labelling.setAttribute("aria-pressed", state.labels);
  };

  const plot = () => {
    const i = state.y * W + state.x, size = H * W;
    const outside = view.fov && !view.fov[i];
    const structure = state.classes ? view.classes[state.classes[i]] : null;
    const mean = view.real_mean[structure] ? structure : "field of view";
    const where = `pixel ${state.x}, ${state.y}${outside ? ", outside the field of view" : structure ? `: ${structure}` : ""}`;
    const traces = [
      { x: nm, y: order.map((c) => view.real_mean[mean][c]), name: `mean of real: ${mean}`, mode: "lines", line: { color: "#3b82c4", dash: "dash" } },
      { x: nm, y: order.map((c) => value(c, state.counts[c * size + i])), name: "this pixel", mode: "lines+markers", line: { color: "#d9632a" } },
    ];
    const line = state.colour ? [] : [{ type: "line", yref: "paper", y0: 0, y1: 1, x0: nm[state.band], x1: nm[state.band], line: { color: colour("--soft"), dash: "dot", width: 1 } }];
    const titles = { xaxis: { title: { text: "wavelength (nm)" } }, yaxis: { title: { text: "reflectance" }, rangemode: "tozero" } };
    draw(chart, { data: traces, layout: { ...titles, shapes: line, hovermode: "x unified" } });
    part("pixel").textContent = where;
  };

  const refresh = () => { if (state.counts) { paint(); plot(); } }; // browsers send pointer moves once a frame

  const open = async (number) => {
    const image = view.images[number];
    const counts = await pixels(image.strip, C * H), classes = image.labels ? await pixels(image.labels, H) : null;
    if (view.fov === undefined) view.fov = view.fov_mask ? await pixels(view.fov_mask, H) : null;
    Object.assign(state, { image: number, counts, classes });
    part("title").textContent = image.title;
    labelling.hidden = !classes;
    canvas.setAttribute("aria-label", `${image.title}; arrow keys move the pixel whose spectrum is drawn`);
    if (!dialog.open) dialog.showModal();
    refresh();
  };
  const step = (by) => open((state.image + by + view.images.length) % view.images.length);

  canvas.width = W; canvas.height = H; canvas.style.setProperty("--aspect", `${W} / ${H}`);
  slider.max = C - 1;
  slider.addEventListener("input", () => { state.band = +slider.value; state.colour = false; refresh(); });
  colouring.addEventListener("click", () => { state.colour = !state.colour; refresh(); });
  labelling.addEventListener("click", () => { state.labels = !state.labels; refresh(); });
  part("before").addEventListener("click", () => step(-1));
  part("next").addEventListener("click", () => step(1));
  part("close").addEventListener("click", () => dialog.close());
  const point = (event) => {
    const box = canvas.getBoundingClientRect(), place = (at, from, length, most) => Math.min(Math.max(Math.floor(((at - from) / length) * most), 0), most - 1);
    state.x = place(event.clientX, box.left, box.width, W); state.y = place(event.clientY, box.top, box.height, H);
    refresh();
  };
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    const by = event.shiftKey ? 8 : 1;
    state.x = Math.min(Math.max(state.x + by * move[0], 0), W - 1); state.y = Math.min(Math.max(state.y + by * move[1], 0), H - 1);
    refresh();
  });
  dialog.addEventListener("keydown", (event) => { if (event.key === "PageUp") step(-1); if (event.key === "PageDown") step(1); });
  document.addEventListener("click", (event) => {
    const tile = event.target.closest("[data-image]");
    if (tile) open(+tile.dataset.image);
  });

  /* the map of features: a picture of the image under the pointer, and the image itself by a press */
  const map = document.querySelector("[data-chart=map]");
  if (map) {
    const { side, columns, sheet } = json("thumb-data"), thumb = document.getElementById("thumb");
    const picture = thumb.querySelector("div"), scale = 2;
    const url = `url(${sheet})`;
    map.on("plotly_hover", ({ points: [at], event }) => {
      const [tile, title] = at.customdata;
      Object.assign(picture.style, {
        width: `${side * scale}px`, height: `${side * scale}px`, backgroundImage: url, backgroundSize: `${columns * side * scale}px auto`,
        backgroundPosition: `${-(tile % columns) * side * scale}px ${-Math.floor(tile / columns) * side * scale}px`,
      });
      thumb.querySelector("span").textContent = title;
      thumb.hidden = false;
      const box = thumb.getBoundingClientRect();
      thumb.style.left = `${Math.min(event.clientX + 14, innerWidth - box.width - 4)}px`;
      thumb.style.top = `${Math.max(Math.min(event.clientY + 14, innerHeight - box.height - 4), 4)}px`;
    });
    map.on("plotly_unhover", () => { thumb.hidden = true; });
    map.on("plotly_click", ({ points: [at] }) => { if (at.customdata[2] !== null) { thumb.hidden = true; open(at.customdata[2]); } });
  }
})();
