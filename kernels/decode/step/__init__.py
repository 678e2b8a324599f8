"""A decode step of the whole model, 8 to 12 kernels a layer: `layer` puts them in order, the other files hold them."""
