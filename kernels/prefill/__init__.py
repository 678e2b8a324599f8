"""What surrounds attention in a layer, without gradients: heads put away, experts chosen, their rows summed."""
