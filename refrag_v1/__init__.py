"""REFRAG v1: the early version, a control whose failure is explained. Beside refrag_v2 it shows the method's delta.

Kept on purpose, each an executable expectation in tests/test_refrag_v1.py: a chunk is read back from its embedding
repeated at every position; no prompt template, so that passages are run together without titles or separators and
chunks of k = 64 are cut across them; the expansion mask is drawn at inference by a policy that sees one chunk alone;
REINFORCE against a moving average; the linear curriculum; lower learning rates (a tenth of v2's in reconstruction, 0.4
in pre-training), linear decay, no order of stages, no fine-tuning.

Not kept, because they would make a straw man of it: crashes on long texts; a loss of constant 0, without a gradient,
on short ones; batches of NaN that are skipped; p = 0 that lifts the cap and expands half of the chunks; the last token
of a chunk without a label; log-probabilities of other coins than those that fell; a reward on the model's own
answer; decoding from a thrown-away prefill, in training mode, with gradients; an unsynchronised clock; an empty answer
counted as right.
"""
