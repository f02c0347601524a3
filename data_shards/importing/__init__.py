"""From files of others to loose cubes: pairing by name, labels and masks, size, values and bands. Formats: `data_shards.formats`."""
