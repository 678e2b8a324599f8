"""What surrounds attention in a layer, without gradients: heads normed, rotated and put away; experts' rows summed."""
