"""The same generator, tokenizer decoder and sampling loop in plain PyTorch: what adanat is timed against.

Two ways of sampling. `reference`: as the published code samples - every sample's conditional and unconditional rows in
forward passes of their own (2T + 1 of them: one more for the policy's last look), softmax and multinomial over all
positions, a full sort of the confidences. `batched`: [cond; uncond] in one pass per step, Gumbel noise, the k-th smallest
confidence; made to be compiled. Both compute every row at every step, whatever the guidance is.
"""
import json
import math
import os
import struct

import torch
import torch.nn.functional as F

AUTONAT = dict(
    mask_ratio=[.953, .880, .794, .746, .625, .407, .261, 0],
    remask_temperature=[2.405, 2.478, 1.192, .769, 1.067, .935, .784, 0],
    sampling_temperature=[2.900, 1.867, 1.144, 1.380, 1.470, 1.376, 1.708, .713],
    guidance=[1e-4, 1e-4, 1e-4, .915, 1.616, 1.195, 1.383, 1.227])


def cosine(steps, guidance, temperature, sampling_temperature):
    done = [(t + 1) / steps for t in range(steps)]
    return dict(
        mask_ratio=[math.cos(math.pi / 2 * d) if d < 1 else 0 for d in done],
        remask_temperature=[temperature * (1 - d) for d in done],
        sampling_temperature=[sampling_temperature] * steps,
        guidance=[guidance * d for d in done])


def read_safetensors(path):
    types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        data = bytearray(file.read())
    header.pop("__metadata__", None)
    out = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        out[name] = torch.frombuffer(data[begin:end], dtype=types[entry["dtype"]]).view(entry["shape"]).float()
    return out


def random_weights(shapes, generator):
    """Norms 1, biases 0, the rest N(0, 0.02): the cost of a forward pass does not depend on it."""
    out = {}
    for name, shape in shapes.items():
        norm = ".norm" in name or "LayerNorm" in name or name.startswith("norm.") or ".ln." in name
        if name.endswith("bias"):
            out[name] = torch.zeros(shape)
        else:
            out[name] = torch.ones(shape) if norm else torch.randn(shape, generator=generator) * 0.02
    return out


def linear_of(weights, name):
    return weights[name + ".weight"], weights.get(name + ".bias")


class Generator(torch.nn.Module):
    def __init__(self, config, weights):
        super().__init__()
        self.c = config
        self.heads = config["heads"]
        self.weights = torch.nn.ParameterDict(
            {name.replace(".", "/"): torch.nn.Parameter(value, requires_grad=False) for name, value in weights.items()})

    def w(self, name):
        return self.weights[name.replace(".", "/")]

    def has(self, name):
        return name.replace(".", "/") in self.weights

    def linear(self, x, name):
        return F.linear(x, self.w(name + ".weight"), self.w(name + ".bias") if self.has(name + ".bias") else None)

    def norm(self, x, name, eps=1e-5):
        return F.layer_norm(x, (x.shape[-1],), self.w(name + ".weight"), self.w(name + ".bias"), eps)

    def block(self, x, name, skip=None):
        if skip is not None:
            x = self.linear(torch.cat([x, skip], -1), name + ".skip_linear")
        b, l, d = x.shape
        qkv = self.linear(self.norm(x, name + ".norm1"), name + ".attn.qkv")
        q, k, v = qkv.view(b, l, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, l, d)
        x = x + self.linear(y, name + ".attn.proj")
        h = F.gelu(self.linear(self.norm(x, name + ".norm2"), name + ".mlp.fc1"))
        return x + self.linear(h, name + ".mlp.fc2")

    def embed(self, ids, name):
        x = F.embedding(ids, self.w(name + ".word_embeddings.weight"))
        x = self.norm(x + self.w(name + ".position_embeddings.weight")[: ids.shape[1]], name + ".LayerNorm", 1e-6)
        return F.dropout(x, self.c.get("dropout", 0.0)) if torch.is_grad_enabled() else x

    def forward(self, tokens, classes):
        x = torch.cat([self.embed(classes[:, None], "context_embed"), self.embed(tokens, "token_emb")], 1)
        half, skips = self.c["depth"] // 2, []
        for i in range(half):
            x = self.block(x, f"in_blocks.{i}")
            skips.append(x)
        x = self.block(x, "mid_block")
        for i in range(half):
            x = self.block(x, f"out_blocks.{i}", skips.pop())
        x = self.norm(x[:, 1:], "norm")
        h = self.norm(F.gelu(self.linear(x, "mlm_layer.fc")), "mlm_layer.ln")
        v = self.c["codes"]
        return F.linear(h, self.w("token_emb.word_embeddings.weight")[:v], self.w("mlm_layer.bias").view(-1)[:v])


def generator_shapes(c):
    d, shapes = c["width"], {}

    def embedding(name, rows, positions):
        shapes[name + ".word_embeddings.weight"] = (rows, d)
        shapes[name + ".position_embeddings.weight"] = (positions, d)
        shapes[name + ".LayerNorm.weight"] = shapes[name + ".LayerNorm.bias"] = (d,)

    def linear(name, out, inner, bias=True):
        shapes[name + ".weight"] = (out, inner)
        if bias:
            shapes[name + ".bias"] = (out,)

    def block(name, skip):
        if skip:
            linear(name + ".skip_linear", d, 2 * d)
        for norm in (".norm1", ".norm2"):
            shapes[name + norm + ".weight"] = shapes[name + norm + ".bias"] = (d,)
        linear(name + ".attn.qkv", 3 * d, d, bias=False)
        linear(name + ".attn.proj", d, d)
        linear(name + ".mlp.fc1", 4 * d, d)
        linear(name + ".mlp.fc2", d, 4 * d)

    embedding("token_emb", c["codes"] + 1, c["grid_height"] * c["grid_width"])
    embedding("context_embed", c["classes"] + 1, 1)
    for i in range(c["depth"] // 2):
        block(f"in_blocks.{i}", False)
        block(f"out_blocks.{i}", True)
    block("mid_block", False)
    shapes["norm.weight"] = shapes["norm.bias"] = (d,)
    linear("mlm_layer.fc", d, d)
    shapes["mlm_layer.ln.weight"] = shapes["mlm_layer.ln.bias"] = (d,)
    shapes["mlm_layer.bias"] = (1, 1, c["codes"] + 1)
    return shapes


class Decoder(torch.nn.Module):
    """tokens (B, N) -> bytes (B, 3, S, S)."""

    def __init__(self, config, weights):
        super().__init__()
        self.c = config
        self.weights = torch.nn.ParameterDict(
            {name.replace(".", "/"): torch.nn.Parameter(value, requires_grad=False) for name, value in weights.items()})

    def w(self, name):
        name = name.replace(".", "/")
        return self.weights[name] if name in self.weights else None

    def conv(self, x, name):
        weight = self.w(name + ".weight")
        return F.conv2d(x, weight, self.w(name + ".bias"), padding=weight.shape[2] // 2)

    def norm_swish(self, x, name):
        groups = math.gcd(32, x.shape[1])
        return F.silu(F.group_norm(x, groups, self.w(name + ".weight"), self.w(name + ".bias"), 1e-6))

    def block(self, x, name):
        h = self.conv(self.norm_swish(x, name + ".norm1"), name + ".conv1")
        h = self.conv(self.norm_swish(h, name + ".norm2"), name + ".conv2")
        if self.w(name + ".nin_shortcut.weight") is None:
            return x + h
        return self.conv(h if self.c["shortcut_from"] == "hidden" else x, name + ".nin_shortcut") + h

    def forward(self, tokens):
        codes = self.w("quantize.embedding.weight")
        if self.c["normalize_codes"]:
            codes = F.normalize(codes, dim=1)
        side = math.isqrt(tokens.shape[1])
        x = F.embedding(tokens, codes).view(len(tokens), side, side, -1).permute(0, 3, 1, 2).contiguous()
        h = self.conv(x, "decoder.conv_in")
        for i in (1, 2):
            h = self.block(h, f"decoder.mid.block_{i}")
        for level in reversed(range(len(self.c["channel_multipliers"]))):
            for b in range(self.c["residual_blocks"]):
                h = self.block(h, f"decoder.up.{level}.block.{b}")
            if level > 0:
                h = self.conv(F.interpolate(h, scale_factor=2.0), f"decoder.up.{level}.upsample.conv")
        h = self.conv(self.norm_swish(h, "decoder.norm_out"), "decoder.conv_out")
        if self.c["unshuffle"] > 1:
            h = F.pixel_shuffle(h, self.c["unshuffle"])
        return (h.clamp(0, 1) * 255).round().to(torch.uint8)


def decoder_shapes(c):
    shapes = {"quantize.embedding.weight": (c["codes"], c["latent_channels"])}
    ch, mult = c["channels"], c["channel_multipliers"]

    def conv(name, out, inner, kernel, bias):
        shapes[name + ".weight"] = (out, inner, kernel, kernel)
        if bias:
            shapes[name + ".bias"] = (out,)

    def block(name, inner, out):
        for norm, width in ((".norm1", inner), (".norm2", out)):
            shapes[name + norm + ".weight"] = shapes[name + norm + ".bias"] = (width,)
        conv(name + ".conv1", out, inner, 3, False)
        conv(name + ".conv2", out, out, 3, False)
        if inner != out:
            conv(name + ".nin_shortcut", out, out if c["shortcut_from"] == "hidden" else inner, 1, False)

    width = ch * mult[-1]
    conv("decoder.conv_in", width, c["latent_channels"], 3, True)
    for i in (1, 2):
        block(f"decoder.mid.block_{i}", width, width)
    for level in reversed(range(len(mult))):
        for b in range(c["residual_blocks"]):
            block(f"decoder.up.{level}.block.{b}", width, ch * mult[level])
            width = ch * mult[level]
        if level > 0:
            conv(f"decoder.up.{level}.upsample.conv", width, width, 3, True)
    shapes["decoder.norm_out.weight"] = shapes["decoder.norm_out.bias"] = (width,)
    conv("decoder.conv_out", 3 * c["unshuffle"] ** 2, width, 3, True)
    return shapes


def remask(tokens, hidden, ids, log_prob, ratio, temperature, mask, last, full_sort):
    """MaskGIT's rule: the least confident stay masked. After the last step all proposals are the image."""
    proposals = torch.where(hidden, ids, tokens)
    if last:
        return proposals
    confidence = log_prob
    if temperature > 0:
        confidence = confidence - temperature * torch.log(-torch.log(torch.rand_like(log_prob).clamp_min(1e-20)))
    confidence = confidence.masked_fill(~hidden, math.inf)
    n = tokens.shape[1]
    if full_sort:  # the count of sample 0, as published
        count = max(1, min(int(hidden[0].sum()) - 1, int(n * ratio)))
        cut = confidence.sort(1).values[:, count - 1 : count]
    else:
        count = (hidden.sum(1, keepdim=True) - 1).clamp(max=int(n * ratio)).clamp(min=1)
        cut = confidence.sort(1).values.gather(1, count - 1)
    return torch.where(confidence <= cut, mask, proposals)


def reference(net, classes, table, argmax=False):
    c, b = net.c, len(classes)
    mask, empty = c["codes"], torch.full_like(classes, c["classes"])
    tokens = torch.full((b, c["grid_height"] * c["grid_width"]), mask, device=classes.device)
    steps = len(table["mask_ratio"])
    for t in range(steps):
        hidden = tokens == mask
        cond = net(tokens, classes).float()
        logits = cond + table["guidance"][t] * (cond - net(tokens, empty).float())
        if argmax:
            ids = logits.argmax(-1)
        else:
            probabilities = (logits / table["sampling_temperature"][t]).softmax(-1)
            ids = torch.multinomial(probabilities.view(-1, c["codes"]), 1).view(b, -1)
        log_prob = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        temperature = 0 if argmax else table["remask_temperature"][t]
        tokens = remask(tokens, hidden, ids, log_prob, table["mask_ratio"][t], temperature, mask, t + 1 == steps, True)
    net(tokens, classes)
    return tokens


def batched_step(net, tokens, classes, guidance, sampling_temperature):
    c = net.c
    both = net(torch.cat([tokens, tokens]), torch.cat([classes, torch.full_like(classes, c["classes"])])).float()
    cond, uncond = both.chunk(2)
    logits = cond + guidance * (cond - uncond)
    noise = -torch.log(-torch.log(torch.rand_like(logits).clamp(1e-20, 1 - 1e-7)))
    ids = (logits / sampling_temperature + noise).argmax(-1)
    return ids, logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def batched(net, classes, table, step=batched_step):
    c, b = net.c, len(classes)
    mask, device = c["codes"], classes.device
    tokens = torch.full((b, c["grid_height"] * c["grid_width"]), mask, device=device)
    steps = len(table["mask_ratio"])
    for t in range(steps):
        hidden = tokens == mask
        # As tensors: a compiled step must not be compiled anew for every value.
        numbers = [torch.tensor(table[key][t], device=device) for key in ("guidance", "sampling_temperature")]
        ids, log_prob = step(net, tokens, classes, *numbers)
        tokens = remask(tokens, hidden, ids, log_prob, table["mask_ratio"][t], table["remask_temperature"][t], mask,
                        t + 1 == steps, False)
    return tokens


def training(net, batch, half=False, condition_dropout=0.15, learning_rate=2e-4):
    """A function that makes one update, as plain training scripts do: masked tokens, the head at every position,
    cross-entropy at the hidden ones, clipping, AdamW, a moving average of the weights."""
    c, device = net.c, next(net.parameters()).device
    positions = c["grid_height"] * c["grid_width"]
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    parameters = list(net.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.03)
    data, labels = torch.randint(c["codes"], (batch, positions)), torch.randint(c["classes"], (batch,))

    def update():
        hidden_count = (torch.cos(torch.rand(batch) * torch.pi / 2) * positions).ceil().clamp(min=1)
        hidden = torch.rand(batch, positions).argsort(1).argsort(1) < hidden_count[:, None]
        classes = torch.where(torch.rand(batch) < condition_dropout, c["classes"], labels)
        ids, where = data.to(device), hidden.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = net(ids.masked_fill(where, c["codes"]), classes.to(device))
        loss = F.cross_entropy(logits.float()[where], ids[where], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1e-3)

    return update


def load(folder, shape, device, dtype):
    """(generator, decoder) of a model folder, or with random weights of a shape's JSON."""
    if folder:
        with open(os.path.join(folder, "config.json")) as file:
            config = json.load(file)
        weights = [read_safetensors(os.path.join(folder, part + ".safetensors")) for part in ("generator", "tokenizer")]
        weights[1] = {name: value for name, value in weights[1].items() if not name.startswith("encoder.")}
    else:
        config, random = shape, torch.Generator().manual_seed(0)
        weights = [random_weights(generator_shapes(config["generator"]), random),
                   random_weights(decoder_shapes(config["tokenizer"]), random)]
    generator = Generator(config["generator"], weights[0]).to(device, dtype)
    return generator, Decoder(config["tokenizer"], weights[1]).to(device), config
