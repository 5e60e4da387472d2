"""How a plugin comes to be, on the device: data, tape, trainer. Imports `sideplug.contract` and `sideplug.device`."""
