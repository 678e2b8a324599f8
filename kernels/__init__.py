"""Optional Triton kernels, installed as `minikeye.kernels` and reached only through `minikeye.ops`.

Nothing here imports minikeye: a kernel takes tensors and returns tensors. The PyTorch code in `minikeye.ops` is the
specification that every kernel is compared with.
"""
