"""The figures of adanat against those of torch-fidelity, pytorch-fid, clean-fid and prdc on the same images and weights.

ADM's evaluator and AdaNAT's measurement are no packages: their steps are written out here, on the networks of the tools.

Images and weights are procedural (tests/golden/data/README.md has the rule), so nothing is downloaded but the tools.
Tolerances: 1e-5 relative; KID 2e-6 absolute (the tools sum it in float32); what counts images equal.
"""
import argparse
import contextlib
import ctypes
import glob
import io
import json
import os
import subprocess
import sys
import time
import types
import warnings

parser = argparse.ArgumentParser()
parser.add_argument("--program", required=True)
parser.add_argument("--folder", required=True)
parser.add_argument("--site", required=True, help="where torch lies")
parser.add_argument("--speed", action="store_true")
parser.add_argument("--general", action="store_true")
options = parser.parse_args()

# Stand-ins for absent CUDA libraries first, then torch with its functions bound when they are called.
for library in glob.glob(os.path.join(options.folder, "empty", "*")):
    ctypes.CDLL(library, mode=os.RTLD_LAZY | os.RTLD_GLOBAL)
sys.setdlopenflags(os.RTLD_LAZY | os.RTLD_GLOBAL)
sys.path.append(options.site)
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
from procedural import uniform  # noqa: E402
import scipy.linalg  # noqa: E402
import scipy.spatial.distance  # noqa: E402
import scipy.special  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
try:
    import torchvision  # noqa: F401, E402
except Exception:  # its compiled operators do not load everywhere; the tools use none of them
    torch.library.Library("torchvision", "DEF").define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401, E402
import cleanfid.fid  # noqa: E402
import pytorch_fid.fid_score  # noqa: E402
import pytorch_fid.inception  # noqa: E402
import torch_fidelity  # noqa: E402
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # noqa: E402
from torch_fidelity.metric_isc import isc_features_to_metric  # noqa: E402

# prdc wants one function of scikit-learn, which scipy has as well.
sys.modules["sklearn"], sys.modules["sklearn.metrics"] = types.ModuleType("sklearn"), types.ModuleType("sklearn.metrics")
sys.modules["sklearn"].metrics = sys.modules["sklearn.metrics"]
sys.modules["sklearn.metrics"].pairwise_distances = lambda x, y, metric, n_jobs: scipy.spatial.distance.cdist(x, y, metric)
import prdc  # noqa: E402

COUNT_A, COUNT_B, SUBSETS, SUBSET_SIZE = 40, 36, 10, 20


def weight(name, shape):
    count = int(np.prod(shape))
    u = uniform(name, count)
    v = 2 * u - 1
    if name.endswith("running_var"):
        out = 1 + 0.5 * u
    elif name.endswith("running_mean"):
        out = 0.1 * v
    elif len(shape) >= 2:
        out = v * np.sqrt(3 / (count / shape[0])) * (1.6 if name.endswith(".conv.weight") else 1)
    else:
        out = (1 + 0.1 * v) if name.endswith(".weight") else 0.1 * v
    return torch.from_numpy(out.astype(np.float32).reshape(shape))


def make_weights(path):
    """The state dict of pytorch-fid's network, filled by the rule."""
    shapes = {}

    def remember(module, *_, **__):
        shapes.update({name: list(value.shape) for name, value in module.state_dict().items()})

    load, url = torch.nn.Module.load_state_dict, pytorch_fid.inception.load_state_dict_from_url
    torch.nn.Module.load_state_dict, pytorch_fid.inception.load_state_dict_from_url = remember, lambda *_, **__: {}
    try:
        pytorch_fid.inception.fid_inception_v3()
    finally:
        torch.nn.Module.load_state_dict, pytorch_fid.inception.load_state_dict_from_url = load, url
    state = {name: weight(name, shape) for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}
    torch.save(state, path + ".part")
    os.replace(path + ".part", path)


def make_images(folder, count, tint):
    """Smooth shapes and noise, so that features differ between images and sets."""
    os.makedirs(folder, exist_ok=True)
    for old in glob.glob(os.path.join(folder, "*.png")):
        os.remove(old)
    y, x = np.mgrid[0:32, 0:32]
    for i in range(count):
        u = uniform(f"{os.path.basename(folder)}.{i}", 8 + 32 * 32 * 3)
        wave = np.sin(x * u[0] + y * u[1] + 6 * u[2])[:, :, None] * (u[3:6] - 0.5) * 200 + 60 + 130 * u[6] + tint
        pixels = np.clip(wave + (u[8:].reshape(32, 32, 3) - 0.5) * 80 * u[7], 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(os.path.join(folder, f"{i:05d}.png"))


def low_rank(product):
    """(Q, Q^T P): P of a rank far below its size, exact to rounding."""
    test = np.random.RandomState(0).standard_normal((product.shape[0], COUNT_A + COUNT_B))
    q, r, _ = scipy.linalg.qr(product @ test, mode="economic", pivoting=True)
    keep = np.abs(np.diag(r)) > 1e-14 * abs(r[0, 0])  # below is rounding; small eigenvalues have roots that count
    q = q[:, keep]
    return q, q.T @ product


def sqrtm_of_low_rank(product, disp=True):
    # P = Q V with V Q of full rank: sqrt(P) = Q (V Q)^(-1/2) V.
    q, v = low_rank(product)
    small = v @ q
    root = q @ np.linalg.solve(small, ROOT(small)) @ v
    return root if disp else (root, 0.0)


def eigvals_of_low_rank(product):
    q, v = low_rank(product)
    out = np.zeros(product.shape[0], dtype=complex)
    out[: v.shape[0]] = EIGVALS(v @ q)
    return out


ROOT, EIGVALS = scipy.linalg.sqrtm, np.linalg.eigvals
if not options.general:
    # The tools' roots of 2048 x 2048 products take minutes on two cores. Here the rank is below 40, which makes them cheap.
    scipy.linalg.sqrtm = lambda p, disp=True, **_: sqrtm_of_low_rank(p, disp) if len(p) > 256 else ROOT(p)
    np.linalg.eigvals = lambda p: eigvals_of_low_rank(p) if len(p) > 256 else EIGVALS(p)

path = os.path.join(options.folder, "inception.pth")
if not os.path.exists(path):
    make_weights(path)
state = torch.load(path)
set_a, set_b = os.path.join(options.folder, "a"), os.path.join(options.folder, "b")
make_images(set_a, COUNT_A, 0)
make_images(set_b, COUNT_B, 25)
pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: state


def adanat(protocol, metrics, *more, images=set_a, reference=set_b, subset_size=SUBSET_SIZE):
    command = [options.program, "eval", "--quiet", "--images", images, "--reference", reference, "--protocol", protocol, "--weights", path,
               "--metrics", metrics, "--kid-subsets", str(SUBSETS), "--kid-subset-size", str(subset_size), "-b", "20",
               "--device", "cpu", "-t", os.environ["OMP_NUM_THREADS"], *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)["metrics"]


failures = 0


def check(what, ours, theirs, relative=1e-5, absolute=0.0):
    global failures
    ours, theirs = float(ours), float(theirs)  # of float32 numbers numpy would tell the difference in float32
    good = abs(ours - theirs) <= absolute + relative * abs(theirs)  # false for NaN
    failures += not good
    print(f"{'ok  ' if good else 'FAIL'} {what}: {ours:.9g} against {theirs:.9g}, off by {abs(ours - theirs):.2g}"
          f" (allowed {absolute + relative * abs(theirs):.2g})")


def quietly(call, *arguments, **named):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
        return call(*arguments, **named)


start = time.time()
ours = adanat("torch-fidelity", "fid,kid,is,pr")
theirs = quietly(torch_fidelity.calculate_metrics, input1=set_a, input2=set_b, cuda=False, fid=True, kid=True, isc=True, prc=True,
                 feature_extractor="inception-v3-compat",
                 feature_layer_prc="2048", kid_subsets=SUBSETS, kid_subset_size=SUBSET_SIZE, feature_extractor_weights_path=path, batch_size=20, cache=False,
                 verbose=False, save_cpu_ram=True)
check("torch-fidelity FID", ours["fid"]["value"], theirs["frechet_inception_distance"])
check("torch-fidelity KID", ours["kid"]["value"], theirs["kernel_inception_distance_mean"], 0, 2e-6)
check("torch-fidelity KID, deviation", ours["kid"]["std"], theirs["kernel_inception_distance_std"], 0, 2e-6)
check("torch-fidelity IS", ours["is"]["value"], theirs["inception_score_mean"])
check("torch-fidelity IS, deviation", ours["is"]["std"], theirs["inception_score_std"], 1e-5, 1e-6)
check("torch-fidelity precision", ours["precision"]["value"], theirs["precision"], 0, 1e-7)
check("torch-fidelity recall", ours["recall"]["value"], theirs["recall"], 0, 1e-7)
check("torch-fidelity f-score", ours["f_score"]["value"], theirs["f_score"], 1e-6)

statistics = os.path.join(options.folder, "a.npz")
ours = adanat("pytorch-fid", "fid", "--save-stats", statistics)
theirs = quietly(pytorch_fid.fid_score.calculate_fid_given_paths, [set_a, set_b], 20, "cpu", 2048, 0)
check("pytorch-fid FID", ours["fid"]["value"], theirs)
model = pytorch_fid.inception.InceptionV3([3])
theirs = quietly(pytorch_fid.fid_score.compute_statistics_of_path, statistics, model, 20, 2048, "cpu", 0)
pool = [quietly(pytorch_fid.fid_score.get_activations, sorted(glob.glob(f + "/*.png")), model, 20, 2048, "cpu", 0) for f in (set_a, set_b)]
again = pool[0].mean(0), np.cov(pool[0], rowvar=False)
check("pytorch-fid reads our statistics: largest mean", theirs[0].max(), again[0].max())
check("pytorch-fid reads our statistics: trace", np.trace(theirs[1]), np.trace(again[1]))
check("pytorch-fid reads our statistics: worst covariance", np.abs(theirs[1] - again[1]).max(), 0, 0, 1e-5 * np.abs(again[1]).max())

# AdaNAT: torch-fidelity's metrics on pytorch-fid's way into the network, means and covariances in float32.
ours = adanat("adanat", "fid,is")


def narrow_statistics(x):
    x = torch.from_numpy(x).float()
    centred = x - x.mean(0)
    return x.mean(0).double().numpy(), (centred.T @ centred / (len(x) - 1)).double().numpy()


(mean_a, covariance_a), (mean_b, covariance_b) = [narrow_statistics(x) for x in pool]
theirs = np.sum((mean_a - mean_b) ** 2) + np.trace(covariance_a) + np.trace(covariance_b) \
    - 2 * np.sqrt(np.linalg.eigvals(covariance_a @ covariance_b).astype(complex)).real.sum()
check("AdaNAT FID", ours["fid"]["value"], theirs)
logits = torch.from_numpy(pool[0]).float() @ state["fc.weight"].T
theirs = isc_features_to_metric(logits, splits=10, shuffle=True, rng_seed=2020)
check("AdaNAT IS", ours["is"]["value"], theirs["inception_score_mean"])

# ADM's evaluator (guided-diffusion evaluations/evaluator.py): torch-fidelity's network is TensorFlow's, its spatial features are
# the first 7 channels of Mixed_6d.branch1x1 in the order (row, column, channel); the reference batch holds images and statistics.
network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=path)
spatial = []
network.Mixed_6d.branch1x1.register_forward_hook(lambda _, __, out: spatial.append(out[:, :7].permute(0, 2, 3, 1).flatten(1).numpy()))


def adm_features(folder):
    images = np.stack([np.array(Image.open(f)) for f in sorted(glob.glob(folder + "/*.png"))])
    spatial.clear()
    out = [quietly(network, torch.from_numpy(images[i:i + 20]).permute(0, 3, 1, 2)) for i in range(0, len(images), 20)]
    pool, logits = (torch.cat(part).numpy() for part in zip(*out))
    return images, pool, logits, np.concatenate(spatial)


def adm_statistics(x):
    return np.mean(x, axis=0), np.cov(x, rowvar=False)


_, pool_a, logits_a, spatial_a = adm_features(set_a)
images_b, pool_b, _, spatial_b = adm_features(set_b)
batch = os.path.join(options.folder, "adm.npz")
(mu, sigma), (mu_s, sigma_s) = adm_statistics(pool_b), adm_statistics(spatial_b)
np.savez(batch, arr_0=images_b, mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s)
ours = adanat("adm", "fid,sfid,is,pr", reference=batch)
distance = pytorch_fid.fid_score.calculate_frechet_distance
check("ADM FID", ours["fid"]["value"], distance(*adm_statistics(pool_a), mu, sigma))
check("ADM sFID", ours["sfid"]["value"], distance(*adm_statistics(spatial_a), mu_s, sigma_s))
p = scipy.special.softmax(logits_a, axis=1)  # 40 images are one of its chunks of 5,000
theirs = np.exp(np.mean(np.sum(p * (np.log(p) - np.log(p.mean(0, keepdims=True))), 1)))
check("ADM IS", ours["is"]["value"], theirs)
within_a, within_b, across = (scipy.spatial.distance.cdist(x.astype(np.float64), y.astype(np.float64))
                              for x, y in ((pool_a, pool_a), (pool_b, pool_b), (pool_a, pool_b)))
ball_a, ball_b = (np.partition(d, 3, axis=1)[:, 3] for d in (within_a, within_b))
check("ADM precision", ours["precision"]["value"], (across <= ball_b).any(1).mean(), 0, 1e-7)
check("ADM recall", ours["recall"]["value"], (across <= ball_a[:, None]).any(0).mean(), 0, 1e-7)
theirs = quietly(prdc.compute_prdc, pool_b.astype(np.float64), pool_a.astype(np.float64), 5)
check("prdc density", ours["density"]["value"], theirs["density"], 0, 1e-7)
check("prdc coverage", ours["coverage"]["value"], theirs["coverage"], 0, 1e-7)

ours = adanat("clean", "fid")
plain = pytorch_fid.inception.InceptionV3([3], resize_input=False, normalize_input=False).eval()


def clean_network(x):
    return plain((x.float() - 128) / 128)[0].squeeze(-1).squeeze(-1)


features = [quietly(cleanfid.fid.get_folder_features, f, clean_network, num_workers=0, batch_size=20, device="cpu", mode="clean",
                    verbose=False) for f in (set_a, set_b)]
check("clean-fid FID", ours["fid"]["value"], cleanfid.fid.fid_from_feats(*features))
# Subsets as large as both sets: which rows they take does not matter, so the tool's unseeded draws do not either.
ours = adanat("clean", "kid", images=f"{set_a}@:{COUNT_B}", subset_size=1000)
check("clean-fid KID", ours["kid"]["value"], cleanfid.fid.kernel_distance(features[0][:COUNT_B], features[1]), 0, 2e-6)
print(f"{time.time() - start:.0f} s")

if options.speed:
    # In turns, so that both meet the same machine; the best of three each. Ours reads and decodes the images as well.
    count = 96
    speed_set = os.path.join(options.folder, "speed")
    make_images(speed_set, count, 0)
    files = sorted(glob.glob(os.path.join(speed_set, "*.png")))
    best = {"adanat": 0.0, "pytorch-fid": 0.0}

    def seconds_of(images):
        command = [options.program, "eval", "--quiet", "--images", images, "--save-stats", os.path.join(options.folder, "speed.npz"),
                   "--protocol", "pytorch-fid", "--weights", path, "-b", "32", "--device", "cpu", "-t", os.environ["OMP_NUM_THREADS"]]
        begin = time.time()
        subprocess.run(command, check=True, capture_output=True)
        return time.time() - begin

    model.eval()
    for _ in range(3):
        # The difference of two runs leaves the start of the program and the reading of the weights out.
        best["adanat"] = max(best["adanat"], (count - 32) / (seconds_of(speed_set) - seconds_of(speed_set + "@:32")))
        begin = time.time()
        quietly(pytorch_fid.fid_score.get_activations, files[:64], model, 32, 2048, "cpu", 0)
        best["pytorch-fid"] = max(best["pytorch-fid"], 64 / (time.time() - begin))
    print(f"Inception features per second, {os.environ['OMP_NUM_THREADS']} threads: adanat {best['adanat']:.2f}, pytorch-fid "
          f"{best['pytorch-fid']:.2f}, ratio {best['adanat'] / best['pytorch-fid']:.2f}")
    failures += best["adanat"] < best["pytorch-fid"]

sys.exit(1 if failures else 0)
