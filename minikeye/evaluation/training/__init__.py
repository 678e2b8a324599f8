"""Scripts that time training and measure its memory."""
