"""A decode step of the whole model in eleven kernels a layer: `layer` puts them in order, the other files hold them."""
