"""Each measure against a case whose answer is known in advance; a wrong sign, side or unit makes these fail."""

import math

import numpy as np
import pytest
import torch

from drpose.evaluation import metrics
from drpose.people.bodies import MIRRORED_SKELETON, SMPLX_JOINT_NAMES


@pytest.fixture
def skeleton():
    return torch.randn(5, 23, 3, generator=torch.Generator().manual_seed(0))


def turn(degrees, axis):
    a, i = math.radians(degrees), [k for k in range(3) if k != axis]
    matrix = torch.eye(3)
    matrix[i[0], i[0]] = matrix[i[1], i[1]] = math.cos(a)
    matrix[i[0], i[1]], matrix[i[1], i[0]] = -math.sin(a), math.sin(a)
    return matrix


def test_millimetres_divides_by_the_scale():
    # 0.1 of the frame at 0.5 frame units per metre is 0.2 m
    assert torch.allclose(metrics.millimetres(torch.tensor([0.1, 0.1]), torch.tensor([0.5, 2.0])), torch.tensor([200.0, 50.0]))


def test_mpjpe_forgives_position_only(skeleton):
    assert metrics.mpjpe(skeleton + torch.tensor([3.0, -2.0, 1.0]), skeleton).max() < 1e-5
    one = skeleton.clone()
    one[:, 7, 1] += 0.23
    assert torch.allclose(metrics.mpjpe(one, skeleton), torch.full((5,), 0.01), atol=1e-6)
    pelvis = skeleton.clone()
    pelvis[:, 0] += torch.tensor([0.0, 0.0, 0.3])          # the reference itself is wrong: the other 22 joints are off by 0.3
    assert torch.allclose(metrics.mpjpe(pelvis, skeleton), torch.full((5,), 0.3 * 22 / 23), atol=1e-5)


def test_mpjpe_of_a_turn(skeleton):
    # about the pelvis by angle t every joint moves by 2 sin(t/2) times its distance from the axis
    centred = skeleton - skeleton[:, :1]
    expected = 2 * math.sin(math.radians(40) / 2) * centred[..., [0, 2]].norm(dim=-1).mean(-1)
    assert torch.allclose(metrics.mpjpe(centred @ turn(40, 1).T, centred), expected, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_pa_mpjpe_forgives_turn_scale_and_position(skeleton, axis):
    moved = 0.4 * skeleton @ turn(130, axis).T + torch.tensor([1.0, 2.0, 3.0])
    assert metrics.mpjpe(moved, skeleton).min() > 0.3
    assert metrics.pa_mpjpe(moved, skeleton).max() < 1e-5
    assert torch.allclose(metrics.procrustes_align(moved, skeleton), skeleton.double(), atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_pa_mpjpe_does_not_forgive_a_mirror_image(skeleton, axis):
    mirror = torch.ones(3)
    mirror[axis] = -1
    assert metrics.pa_mpjpe(skeleton * mirror, skeleton).min() > 0.2


def test_pa_mpjpe_is_in_the_unit_of_the_truth_and_optimal(skeleton):
    noisy = skeleton + 0.1 * torch.randn(5, 23, 3, generator=torch.Generator().manual_seed(1))
    aligned = metrics.procrustes_align(noisy, skeleton)
    best = (aligned - skeleton).square().sum((1, 2))
    for other in (aligned * 1.01, aligned + 0.01, aligned @ turn(1, 0).T.double()):
        assert (best <= (other - skeleton).square().sum((1, 2))).all()
    assert torch.allclose(metrics.pa_mpjpe(noisy * 7, skeleton), metrics.pa_mpjpe(noisy, skeleton), atol=1e-5)
    assert metrics.pa_mpjpe(torch.zeros(1, 23, 3), skeleton[:1]).isfinite().all()


def test_pa_mpjpe_agrees_with_scipy(skeleton):
    from scipy.spatial.transform import Rotation

    other = torch.randn(5, 23, 3, generator=torch.Generator().manual_seed(2))
    x, y = (t[0].double().numpy() - t[0].double().numpy().mean(0) for t in (other, skeleton))
    rotation = Rotation.align_vectors(y, x)[0].as_matrix()
    scale = np.sum(y * (x @ rotation.T)) / np.sum(x * x)
    expected = np.linalg.norm(scale * x @ rotation.T - y, axis=-1).mean()
    assert metrics.pa_mpjpe(other, skeleton)[0].item() == pytest.approx(expected, rel=1e-5)


def test_left_right_partners():
    for joint, partner in enumerate(MIRRORED_SKELETON):
        assert MIRRORED_SKELETON[partner] == joint
        name = SMPLX_JOINT_NAMES[joint]
        assert (partner == joint) == (not name.startswith(("left_", "right_")))
    assert sum(i != j for i, j in enumerate(MIRRORED_SKELETON)) == 16


def test_swap_is_forgiven_for_the_whole_sample_only():
    points = 64 * torch.rand(3, 4, 23, 2, generator=torch.Generator().manual_seed(0))
    predicted = points.clone()
    predicted[1] = points[1][:, list(MIRRORED_SKELETON)]                  # labels exchanged everywhere
    predicted[2, 0] = points[2, 0][list(MIRRORED_SKELETON)]               # in one view of four: not forgiven
    plain, forgiven = metrics.pixel_errors(predicted, points).mean((1, 2)), metrics.swap_forgiven_pixels(predicted, points)
    assert forgiven[0] == 0 and forgiven[1] == 0 and plain[1] > 5
    assert forgiven[2] == plain[2] > 1


def test_pck_threshold_scales_with_the_image():
    errors = torch.tensor([[[2.9, 3.1, 0.0, 40.0]]])
    assert metrics.pck(errors, 64).item() == 0.5
    assert metrics.pck(errors * 12, 768).item() == 0.5
    assert metrics.pck(errors, 768).item() == 0.75


def test_silhouette_iou_of_shifted_squares():
    a, b = torch.zeros(2, 10, 10), torch.zeros(2, 10, 10)
    a[:, 2:6, 2:6] = 1
    b[0, 2:6, 3:7] = 1                                                          # 12 shared of 20
    b[1, 6:9, 6:9] = 1                                                          # none shared
    assert torch.allclose(metrics.silhouette_iou(a, b), torch.tensor([12 / 20, 0.0]))
    assert torch.allclose(metrics.silhouette_iou(a.bool(), b.bool()), torch.tensor([12 / 20, 0.0]))
    assert metrics.silhouette_iou(torch.zeros(4, 4), torch.zeros(4, 4)) == 1
    assert metrics.silhouette_iou(a[:1] * 0.4, a[:1]) == 0                      # coverage below one half is outside


def test_mask_from_normals():
    normals = torch.full((3, 2, 2), 0.5)
    normals[:, 0, 0] = torch.tensor([0.5, 0.5, 1.0])                            # faces us
    normals[:, 0, 1] = torch.tensor([0.5, 0.5, 0.0])                            # faces away: still the figure
    normals[:, 1, 0] = torch.tensor([0.7, 0.5, 0.5])                            # length 0.4: a smear
    assert metrics.masks_from_normals(normals).tolist() == [[True, True], [False, False]]


def test_normal_degrees():
    encode = lambda *n: (torch.tensor(n)[:, None, None] / 2 + 0.5).expand(3, 4, 4).clone()
    front, mask = encode(0.0, 0.0, 1.0), torch.ones(4, 4)
    for angle in (0.3, 1.2, 2.5, math.pi):
        turned = encode(math.sin(angle), 0.0, math.cos(angle))
        assert metrics.normal_degrees(turned, front, mask).item() == pytest.approx(math.degrees(angle), abs=0.05)
    assert metrics.normal_degrees(encode(0.0, 0.0, 0.7), front, mask).item() < 0.1        # length does not matter
    half = front.clone()
    half[:, :2] = 0.5                                                           # the upper half is missing
    assert metrics.normal_degrees(half, front, mask).item() == pytest.approx(45.0)
    mask[:2] = 0
    assert metrics.normal_degrees(half, front, mask).item() < 0.1               # outside the mask nothing counts


def test_ssim_against_a_plain_loop():
    "Every window written out, for two channels of a small picture; 1 for equal pictures; too small ones are refused."
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 2, 13, 12, generator=generator, dtype=torch.float64)
    b = (a + 0.2 * torch.randn(a.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    offsets = np.arange(-5, 6)
    weight = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    for sample in range(2):
        values = []
        for channel in range(2):
            for top in range(3):
                for left in range(2):
                    x, y = (picture[sample, channel, top : top + 11, left : left + 11].numpy() for picture in (a, b))
                    mx, my = (weight * x).sum(), (weight * y).sum()
                    vx, vy, both = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum(), (weight * (x - mx) * (y - my)).sum()
                    values.append((2 * mx * my + 1e-4) * (2 * both + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
        assert metrics.ssim(a, b)[sample].item() == pytest.approx(np.mean(values), abs=1e-9)
    assert torch.allclose(metrics.ssim(a, a), torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="at least 11 pixels"):
        metrics.ssim(a[..., :8], b[..., :8])


def test_psnr_of_known_noise():
    true = torch.full((3, 2, 3, 40, 40), 0.5)
    noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 0.01, 0.0]).view(3, 1, 1, 1, 1)
    assert torch.allclose(metrics.psnr(true + noise, true), torch.tensor([20.0, 40.0, 100.0]), atol=0.3)
    assert metrics.psnr(true + 0.9, true)[0].item() == pytest.approx(-10 * math.log10(0.25), abs=1e-4)     # clipped to 1


def test_sharpness_falls_with_blur_and_ignores_position():
    picture = (torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5).float().repeat_interleave(8, -1).repeat_interleave(8, -2)
    blurs = [torch.nn.functional.avg_pool2d(picture, k, 1, k // 2, count_include_pad=False) for k in (1, 3, 5, 9)]
    values = [metrics.sharpness(b, picture).mean().item() for b in blurs]
    assert values[0] == pytest.approx(1) and all(a > b for a, b in zip(values, values[1:])) and values[-1] < 0.5
    assert torch.allclose(metrics.sharpness(picture.flip(-1), picture), torch.ones(4))
    assert torch.allclose(metrics.sharpness(0.5 * picture, picture), torch.full((4,), 0.5))


def test_frechet_closed_form():
    random = np.random.default_rng(0)
    a = random.normal(size=(60000, 4))
    shift, sigma = np.array([1.0, -2.0, 0.5, 0.0]), np.array([0.5, 1.0, 2.0, 3.0])
    b = random.normal(size=(60000, 4)) * sigma + shift
    expected = np.sum(shift**2) + np.sum((sigma - 1) ** 2)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=0.03)
    assert metrics.frechet_distance(b, a) == pytest.approx(metrics.frechet_distance(a, b), rel=1e-8)


def test_frechet_of_correlated_gaussians_agrees_with_the_matrix_root():
    from scipy.linalg import sqrtm

    random = np.random.default_rng(1)
    a, b = random.normal(size=(300, 6)) @ random.normal(size=(6, 6)), random.normal(size=(200, 6)) @ random.normal(size=(6, 6)) + 1
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [5, 64, 65])
def test_frechet_is_stable_with_few_samples(count):
    features = 100 * np.random.default_rng(0).normal(size=(count, 64)).astype(np.float32)
    assert metrics.frechet_distance(features, features) < 1e-4
    shifted = features + 3
    assert metrics.frechet_distance(features, shifted) == pytest.approx(64 * 9, rel=1e-3)
    assert metrics.frechet_distance(torch.from_numpy(features), shifted) == pytest.approx(64 * 9, rel=1e-3)


def test_bootstrap_covers_the_truth():
    random = np.random.default_rng(0)
    intervals = [metrics.bootstrap_ci(random.exponential(size=80), n=300, seed=i) for i in range(300)]
    assert 0.89 <= np.mean([low < 1 < high for low, high in intervals]) <= 0.985
    widths = [high - low for low, high in intervals]
    assert np.mean(widths) == pytest.approx(2 * 1.96 / math.sqrt(80), rel=0.1)


def test_bootstrap_is_repeatable_and_takes_a_statistic():
    values = np.random.default_rng(0).normal(size=(50, 2))
    ratio = lambda rows: rows[:, 0].std() / rows[:, 1].std()
    assert metrics.bootstrap_ci(values, ratio, n=200, seed=3) == metrics.bootstrap_ci(values, ratio, n=200, seed=3)
    low, high = metrics.bootstrap_ci(values, ratio, n=200)
    assert low < ratio(values) < high


def test_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=40)
    replicates = np.array([np.delete(values, i).mean() for i in range(40)])
    assert metrics.jackknife_se(replicates) == pytest.approx(values.std(ddof=1) / math.sqrt(40))


def test_frechet_jackknife_is_near_the_true_spread():
    random = np.random.default_rng(0)
    reference = random.normal(size=(4000, 8))
    draws = [random.normal(size=(120, 1, 8)) * 1.3 + 0.5 for _ in range(60)]
    spread = np.std([metrics.frechet_distance(d[:, 0], reference) for d in draws])
    estimated = np.median([metrics.jackknife_se(metrics.frechet_replicates(d, reference)) for d in draws[:20]])
    assert 0.7 < estimated / spread < 1.4


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: metrics.mpjpe(torch.zeros(2, 23, 3), torch.zeros(2, 22, 3)), "mpjpe"),
        (lambda: metrics.mpjpe(torch.zeros(2, 23, 2), torch.zeros(2, 23, 2)), "mpjpe"),
        (lambda: metrics.mpjpe(torch.zeros(23, 3), torch.zeros(23, 3)), "mpjpe"),
        (lambda: metrics.pixel_errors(torch.zeros(2, 4, 23, 3), torch.zeros(2, 4, 23, 3)), "pixel_errors"),
        (lambda: metrics.silhouette_iou(torch.zeros(4, 4), torch.zeros(4, 5)), "silhouette_iou"),
        (lambda: metrics.masks_from_normals(torch.zeros(4, 4)), "masks_from_normals"),
        (lambda: metrics.normal_degrees(torch.rand(3, 4, 4), torch.rand(3, 4, 4), torch.zeros(4, 4)), "mask"),
        (lambda: metrics.psnr(torch.zeros(2, 3), torch.zeros(3, 2)), "psnr"),
        (lambda: metrics.frechet_distance(np.zeros((1, 3)), np.zeros((5, 3))), "2 rows"),
        (lambda: metrics.frechet_distance(np.full((5, 3), np.nan), np.zeros((5, 3))), "finite"),
        (lambda: metrics.frechet_distance(np.zeros((5, 3)), np.zeros((5, 4))), "3 and 4"),
        (lambda: metrics.bootstrap_ci([1.0]), "2 rows"),
        (lambda: metrics.bootstrap_ci([1.0, math.nan]), "finite"),
    ],
)
def test_bad_input_gets_one_sentence(call, word):
    with pytest.raises(ValueError, match=word) as error:
        call()
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize("measure", ["psnr", "ssim", "sharpness"])
@pytest.mark.parametrize(("change", "sentence"), [(lambda x: 2 * x - 1, "these look like \\[-1, 1\\]"), (lambda x: 255 * x, "divide by 255")])
def test_pictures_in_another_range_are_refused(measure, change, sentence):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for pair in ((change(images), images), (images, change(images))):
        with pytest.raises(ValueError, match=f"{measure}: the values of pictures must lie in .0, 1., found .*{sentence}"):
            getattr(metrics, measure)(*pair)
    with pytest.raises(ValueError, match=sentence):
        metrics.masks_from_normals(change(images))


def test_errors_along_axes_are_about_each_ones_own_pelvis(skeleton):
    scale, wrong = torch.full((5,), 0.5), skeleton.clone()
    wrong[:, 5] += torch.tensor([0.1, -0.2, 0.3])
    here, there = (metrics.axis_errors(wrong + torch.tensor(moved), skeleton + torch.tensor(other), scale) for moved, other in (((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)), ((0.3, -0.2, 0.7), (-0.4, 0.1, 0.2))))
    for name, expected in {"across_mm": 0.1, "height_mm": 0.2, "depth_mm": 0.3}.items():
        assert torch.allclose(here[name], torch.full((5,), 1000 * expected / 0.5 / 23), rtol=1e-4), name
        assert torch.allclose(there[name], here[name], rtol=1e-3), name
    assert torch.allclose(there["depth_of_flat"], here["depth_of_flat"], rtol=1e-4)


def test_the_interval_leaves_as_much_out_below_as_above():
    "Of values that lie alike on both sides: 1.96 standard errors each way."
    values = np.concatenate([np.linspace(-1, 1, 200)] * 2)
    low, high = metrics.bootstrap_ci(values, n=20_000, seed=5)
    error = values.std() / len(values) ** 0.5
    assert low == pytest.approx(-1.96 * error, rel=0.04) and high == pytest.approx(1.96 * error, rel=0.04)
