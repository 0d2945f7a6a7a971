"""Small torch programs, one property each, that a port has to get right: outputs, every gradient, buffers."""
