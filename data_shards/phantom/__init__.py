"""The physical retinal phantom: `persons` who they are, `vessels` and `fundus` their anatomy, `spectra` the optics,
`camera` what it sees of them, `eyes` whole cubes, `painted` cubes with the vessels of real photographs."""
