"""Optional Triton kernels, installed as `minikeye.kernels` and reached only through `minikeye.ops`.

Nothing here imports minikeye: a kernel takes tensors and returns tensors. The PyTorch code of `minikeye.ops` is the
specification that every kernel is compared with; `minikeye.evaluation.kernels` proves and measures. In reading order:

    attention/
      sparse_forward, online_softmax, gather     one query and one KV head a program: attention over a gathered set
      union_lists, sparse_union                  eight neighbouring queries as one tile over the union of their sets
      sparse_attention                           the door: which of the two answers, slab by slab, and gradients
      sparse_backward                            gradients over unions, by sums of integers: the same bits in any order
    selection/
      index_scores                               the lightning indexer's scores, a slab of queries at a time
      select_topk, select_fast, ordered_bits     exact top-k by radix, and with a sampled bound
      sampled_bound, bit_lists                   the bound, and the keys that pass it, from bits to a list
    losses/
      selected_loss, selected_backward           the loss that teaches the indexer on the keys that it selected
      warmup_loss, warmup_lse, loss_tiles        the same over all keys, for the dense warm-up
    decode/
      decode_select, decode_attention            one token a sequence, under a CUDA graph
      step/layer, shapes                         a decoder layer for one token a sequence, eleven kernels in order:
      step/norms, products, new_token            residual and norm; products with one token a row; heads and the cache
      step/scores, attend                        index scores; attention over a list of keys, or over all
      step/route, expert, experts                the router; the experts of one token, and of up to 16
      dependent                                  kernels that start before the one before has ended
    prefill/
      heads, router, experts                     what surrounds attention: heads to their places, experts and their rows
    integer_sums                                 atomic sums that are the same bits in any order
    launch                                       which row of a launch table fits a card, and what the interpreter needs

What was tried on an H100 and not kept, because it was slower or brought next to nothing: a second, upper bound in the
selection, to fetch fewer scores; the filter fused into the score kernel, whose registers then spill; other tiles and
numbers of warps of every selection and decode kernel; the radix select for all rows. On an H200: twice or four times
the slab of scores, which saves 2 to 4 % of a layer's selection; a quarter of decode's sample, which misled so many of
16 rows that a layer took 190 us more. What limits a prefill now: the score kernel, near the L2 cache's rate and issuing
in half of all cycles; the union tile, which probably waits for its gather, with a quarter of the threads that would
fit; and the filter, at the rate of memory (assets/results/kernels_counters.json).
"""
