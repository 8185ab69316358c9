"""Times adanat and the peers of peer.py by turns, and writes the ratios as JSON. Started by bench/peers/run."""
import argparse
import ctypes
import glob
import json
import os
import statistics
import subprocess
import sys
import time
import warnings

parser = argparse.ArgumentParser(prog="bench/peers/run", description=__doc__)
parser.add_argument("--program", required=True)
parser.add_argument("--site", required=True, help="where torch lies")
parser.add_argument("--empty", required=True, help="folder of stand-ins for absent CUDA libraries")
parser.add_argument("-m", "--model", help="model folder")
parser.add_argument("--shape", help="adanat-l or signs instead: random weights")
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--classes", type=int, default=0, help="distinct classes in the batch; 0 = as many as there are")
parser.add_argument("--schedule", default="cosine", choices=["cosine", "autonat"])
parser.add_argument("--steps", type=int, default=8)
parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the peers")
parser.add_argument("--ours", default="", help="dtypes of adanat, with commas; default: the peers'")
parser.add_argument("--peers", default="reference,compiled", help="of reference, batched, compiled")
parser.add_argument("--train", action="store_true", help="updates of generator training instead, against PyTorch eager")
parser.add_argument("--device", default="cpu")
parser.add_argument("--threads", type=int, default=0)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("-o", "--output")
o = parser.parse_args()
if bool(o.model) == bool(o.shape):
    parser.error("give either --model or --shape")
if o.train and (o.classes or o.schedule != "cosine" or o.peers != "reference,compiled"):
    parser.error("--train: knows no --classes, --schedule and --peers")
ours = (o.ours or o.dtype).split(",")
threads = o.threads or len(os.sched_getaffinity(0))
os.environ["OMP_NUM_THREADS"] = str(threads)

# Stand-ins for absent CUDA libraries first, then torch with its functions bound when they are called.
for library in glob.glob(os.path.join(o.empty, "*")):
    ctypes.CDLL(library, mode=os.RTLD_LAZY | os.RTLD_GLOBAL)
sys.setdlopenflags(os.RTLD_LAZY | os.RTLD_GLOBAL)
sys.path.append(o.site)
warnings.filterwarnings("ignore")
import torch  # noqa: E402

import peer  # noqa: E402

torch.set_num_threads(threads)
torch.set_grad_enabled(False)
torch.backends.cudnn.allow_tf32 = False  # float32 means float32, as in adanat


def run_ours(dtype, rounds=1):
    """One sample of adanat: seconds of a generation (classes in, bytes out) by the clock and of all threads."""
    source = ["-m", o.model] if o.model else ["--shape", o.shape]
    if o.train:
        command = [o.program, "bench", "--train", *source, "--json", "--quiet", "--device", o.device, "-t", str(threads),
                   "--batch-sweep", str(o.batch), "--dtype-sweep", dtype, "--warmup", "1", "--repeats", str(max(rounds, 3))]
        report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return report["results"][0]["seconds"]["median"], report["results"][0]["processor_seconds"], report
    command = [o.program, "bench", *source, "--json", "--quiet", "--stages", "generate", "--device", o.device, "-t",
               str(threads), "--batch-sweep", str(o.batch), "--classes", str(o.classes), "--dtype-sweep", dtype, "--steps",
               str(o.steps), "--schedule", o.schedule, "--warmup", "1", "--repeats", str(rounds)]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    result = report["results"][0]
    return result["seconds"]["median"], result["processor_seconds"], report


shape = None
if o.shape:  # the program says what the sizes are
    shape = run_ours(ours[0])[2]["model"]
generator, decoder, config = peer.load(o.model, shape, o.device, torch.float32 if o.train else getattr(torch, o.dtype))
kinds = min(o.classes or config["generator"]["classes"], config["generator"]["classes"])
classes = torch.arange(o.batch, device=o.device) % kinds
if o.schedule == "autonat":
    table = peer.AUTONAT
else:
    t = config.get("sampling", {}).get("table", {})
    table = peer.cosine(o.steps, t.get("guidance", 1), t.get("temperature", 4.5), t.get("sampling_temperature", 1))


def agreement():
    """Truth before speed: without noise both must make the same tokens. None for random weights."""
    if not o.model or o.schedule != "cosine" or o.train:
        return None
    import tempfile
    count = 8
    with tempfile.TemporaryDirectory() as folder:
        saved = os.path.join(folder, "x.safetensors")
        subprocess.run([o.program, "generate", "--quiet", "-m", o.model, "-o", os.path.join(folder, "x.png"), "-n", str(count),
                        "--steps", str(o.steps), "--schedule", "cosine", "--temperature", "0", "--sampling-temperature", "0",
                        "--dtype", "float32", "--device", "cpu", "--save-tokens", saved], check=True)
        with open(saved, "rb") as file:
            import struct
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
            data = bytearray(file.read())
    begin, end = header["tokens"]["data_offsets"]
    made = torch.frombuffer(data[begin:end], dtype=torch.int64).view(header["tokens"]["shape"])
    exact = peer.load(o.model, None, "cpu", torch.float32)[0]
    theirs = peer.reference(exact, torch.arange(count), table, argmax=True)
    return (made == theirs).double().mean().item()


share = agreement()
if share is not None and share < 0.99:
    sys.exit(f"the peers compute something else: only {share:.4f} of the tokens agree without noise")


def reference():
    return decoder(peer.reference(generator, classes, table))


def batched():
    return decoder(peer.batched(generator, classes, table))


compiled_step = compiled_decoder = None


def compiled():
    global compiled_step, compiled_decoder
    if compiled_step is None:
        mode = "reduce-overhead" if o.device.startswith("cuda") else "default"
        compiled_step = torch.compile(peer.batched_step, mode=mode, dynamic=False)
        compiled_decoder = torch.compile(decoder, mode=mode, dynamic=False)
    return compiled_decoder(peer.batched(generator, classes, table, compiled_step))


def timed(way):
    wall, processor = time.perf_counter(), time.process_time()
    way()
    if o.device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor


peers = {name: {"reference": reference, "batched": batched, "compiled": compiled}[name] for name in o.peers.split(",")}
if o.train:
    update = peer.training(generator, o.batch, half=o.dtype == "bfloat16")

    def eager():
        with torch.enable_grad():
            update()

    peers = {"eager": eager}
samples = {f"adanat {dtype}": [] for dtype in ours} | {f"{name} {o.dtype}": [] for name in peers}
for name, way in peers.items():
    timed(way)  # compiles, allocates
for _ in range(o.rounds):
    for dtype in ours:
        samples[f"adanat {dtype}"].append(run_ours(dtype)[:2])
    for name, way in peers.items():
        samples[f"{name} {o.dtype}"].append(timed(way))

platform = run_ours(ours[0])[2]["platform"]
report = {"platform": platform, "torch": torch.__version__, "device": o.device, "threads": threads, "model": o.model or o.shape,
          "batch": o.batch, "classes": kinds, "schedule": o.schedule, "steps": o.steps, "rounds": o.rounds, "train": o.train,
          "agreement_without_noise": share, "seconds_per_image": {}, "ratios": []}
for name, values in samples.items():
    report["seconds_per_image"][name] = {
        "wall": statistics.median(v[0] for v in values) / o.batch,
        "processor": statistics.median(v[1] for v in values) / o.batch,
        "wall_min": min(v[0] for v in values) / o.batch, "wall_max": max(v[0] for v in values) / o.batch}
for dtype in ours:
    for name in peers:
        # By rounds: both of a pair ran within seconds of each other.
        pairs = list(zip(samples[f"adanat {dtype}"], samples[f"{name} {o.dtype}"]))
        ratios = sorted(theirs[0] / mine[0] for mine, theirs in pairs)
        report["ratios"].append({
            "adanat": dtype, "peer": f"{name} {o.dtype}", "wall": statistics.median(ratios), "wall_min": ratios[0],
            "wall_max": ratios[-1], "processor": statistics.median(theirs[1] / mine[1] for mine, theirs in pairs)})
if o.train:
    for key in ("classes", "schedule", "steps", "agreement_without_noise"):
        del report[key]
text = json.dumps(report, indent=2)
print(text)
if o.output:
    with open(o.output + ".part", "w") as file:
        file.write(text + "\n")
    os.replace(o.output + ".part", o.output)
