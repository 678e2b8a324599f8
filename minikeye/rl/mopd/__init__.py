"""Cross-Modal Multi-Teacher On-Policy Distillation: many teachers, one student (report, "Cross-Modal MOPD").

In the order of reading: `support` (where teacher and student are compared), `estimators` (by which loss), `exact` (what
a loss teaches on average), `teachers` (who judges what), `aligned` (whether both read the same), `shaping` (kinds of
token, and loops), `distill` (the loop), `merging` (what it is compared with), `domains` (which experts
there are here).
"""
