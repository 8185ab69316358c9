"""The operators from Python: python_ops.py libadanat_ops.so. Exit status 77 where this Python has no working torch."""
import sys

try:
    import torch
except Exception as error:
    print(f"skipped: no torch here ({error})")
    sys.exit(77)

torch.ops.load_library(sys.argv[1])
ops = torch.ops.adanat

x = torch.tensor([[0.0, 0.1], [5.0, 4.0], [0.9, 1.2]])
codebook = torch.tensor([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]])
ids, distance = ops.nearest_code(x, codebook)
assert ids.tolist() == [0, 2, 1], ids
assert torch.allclose(distance, ((x - codebook[ids]) ** 2).sum(1), atol=1e-5), distance

B, N, V = 2, 6, 8
logits = torch.zeros(B, N, V)
wanted = (torch.arange(B * N).view(B, N) * 3) % V
logits.scatter_(2, wanted[..., None], 50.0)  # one code is practically certain
arguments = dict(
    logits=logits, logits_uncond=None, tokens=torch.full((B, N), V), mask_ratio=torch.full((B,), 0.5, dtype=torch.float64),
    remask_temperature=torch.ones(B), sampling_temperature=torch.ones(B), guidance=torch.zeros(B),
    seed=torch.full((B,), 7), image_index=torch.arange(B), step=torch.zeros(1, dtype=torch.int64),
    hidden_at_start=torch.full((B,), N), rule=1, priority=None, token_noise=None, confidence_noise=None)
tokens, proposals, confidence, log_prob = ops.decode_step(**arguments)
assert torch.equal(proposals, wanted), (proposals, wanted)
assert torch.equal(tokens, torch.where(tokens == V, tokens, wanted)), tokens
assert (tokens == V).sum(1).tolist() == [N // 2] * B, tokens
assert all(torch.equal(a, b) for a, b in zip(ops.decode_step(**arguments), (tokens, proposals, confidence, log_prob)))
shapes = ops.decode_step(**{k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in arguments.items()})
assert [tuple(s.shape) for s in shapes] == [(B, N)] * 4, shapes
print("ok")
