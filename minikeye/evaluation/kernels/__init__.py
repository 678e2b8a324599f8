"""Scripts that check, time and count the Triton kernels; none of them is needed to run one."""
