"""The operator against its oracle, and against what PyTorch asks of an operator."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from drconv_mm import region_conv2d
from drconv_mm.ops.backends import BACKENDS, ENV, Backend, batched, dense
from drconv_mm.ops.backends import sorted as sorted_
from drconv_mm.ops.backends.common import region_map

from ..conftest import DEVICE

CAN_RUN = [name for name in BACKENDS if DEVICE is None or BACKENDS[name].why_not(torch.device(DEVICE)) is None]
FAST = [name for name in CAN_RUN if name != "reference"]


def make(n=2, c=4, o=6, m=3, kernel=(3, 2), size=(7, 5), own=True, groups=1, dtype=torch.float64, seed=0, **geometry):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")
        return drawn.to(torch.get_default_device(), dtype)

    input = randn(n, c, *size)
    filters = randn(n if own else 1, m, o, c // groups, *kernel)
    plain = F.conv2d(torch.zeros(1, c, *size), torch.zeros(o, c // groups, *kernel), groups=groups, **geometry)
    return input, filters, randn(n, m, *plain.shape[-2:]), randn(o), dict(groups=groups, **geometry)


@pytest.mark.parametrize("kernel", [(2, 4), (3, 2), (4, 3)])
@pytest.mark.parametrize("dilation", [1, (2, 3)])
def test_padding_by_name_is_that_of_a_convolution(kernel, dilation):
    """The oracle is called through the same front, which pads: here it is another."""
    for padding in ("same", "valid"):
        arguments = dict(m=1, own=False, kernel=kernel, size=(12, 13), padding=padding, dilation=dilation)
        input, filters, guide, bias, arguments = make(**arguments)
        output = region_conv2d(input, filters, guide, bias, **arguments)
        torch.testing.assert_close(output, F.conv2d(input, filters[0, 0], bias, **arguments))


def upstream_of(output):
    """The same gradient on every device."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(output.shape, generator=generator, dtype=torch.float64, device="cpu").to(output)


def forward_backward(tensors, backend, arguments):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = region_conv2d(*leaves, backend=backend, **arguments)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream_of(output))]


def assert_like_reference(backend, tensors, arguments, rtol=1e-10, atol=1e-10):
    names = ("output", "grad_input", "grad_filters", "grad_guide", "grad_bias")
    # Its loops over pixels are slow to start on a GPU.
    expected = [t.to(tensors[0].device) for t in forward_backward([t.cpu() for t in tensors], "reference", arguments)]
    for name, got, want in zip(names, forward_backward(tensors, backend, arguments), expected, strict=True):
        torch.testing.assert_close(
            got, want, rtol=rtol, atol=atol, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
        )


@st.composite
def problems(draw):
    """Any geometry the operator accepts, small enough for the oracle's loops."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    depthwise = draw(st.booleans()) and groups > 1
    c = groups if depthwise else groups * draw(st.integers(1, 3))
    o = groups * draw(st.integers(1, 3))
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding = draw(st.sampled_from([0, 1, (0, 2), (2, 1), "same", "valid"]))
    stride = 1 if padding == "same" else draw(st.sampled_from([1, 2, (1, 3), (2, 1)]))
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = tuple(e + draw(st.integers(0, 4)) for e in extent)
    n, m = draw(st.integers(0, 3)), draw(st.integers(1, 5))
    input, filters, guide, bias, arguments = make(
        n=n, c=c, o=o, m=m, kernel=kernel, size=size, own=draw(st.booleans()), groups=groups,
        seed=draw(st.integers(0, 2**16)), stride=stride, padding=padding, dilation=dilation,
    )  # fmt: skip
    kind = draw(st.sampled_from(["free", "ties", "unused", "nan"]))
    if kind == "ties":
        guide = guide.round()
    elif kind == "unused":
        guide[:, 0] -= 100
    elif kind == "nan":  # here and there, and in all regions of the last column
        guide[guide > 1] = float("nan")
        guide[..., -1] = float("nan")
    layout = draw(st.sampled_from(["contiguous", "channels_last", "strided"]))
    if layout == "channels_last":
        input = input.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        input = torch.stack([input, input], -1)[..., 0].transpose(2, 3).contiguous().transpose(2, 3)
    if draw(st.booleans()):  # as a model in channels_last gives it
        guide = guide.contiguous(memory_format=torch.channels_last)
    arguments["guide_grad_scale"] = draw(st.sampled_from([1.0, 0.25, 0.0]))
    arguments["guide_grad"] = draw(st.sampled_from(["full", "full", "topk", "none"]))
    arguments["guide_topk"] = draw(st.integers(1, 4))
    return (input, filters, guide, bias), arguments


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(problem=problems())
def test_any_geometry_equals_the_oracle(backend, problem):
    assert_like_reference(backend, *problem)


@pytest.mark.parametrize("module", [sorted_, batched])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("guide_grad", ["full", "topk"])
def test_work_in_many_chunks_equals_the_oracle(monkeypatch, module, own, guide_grad):
    monkeypatch.setattr(module, "_CHUNK_NUMEL", 64)
    *tensors, arguments = make(n=3, m=4, own=own, padding=1)
    name = next(name for name, backend in BACKENDS.items() if backend.forward is module.forward)
    assert_like_reference(name, tensors, dict(arguments, guide_grad=guide_grad))


def test_the_oracle_is_the_convolution_of_each_region():
    input, filters, guide, bias, arguments = make(stride=2, padding=1)
    output = region_conv2d(input, filters, guide, bias, backend="reference", **arguments)
    regions = guide.argmax(1)
    for n in range(2):
        for j in range(3):
            answer = F.conv2d(input[n : n + 1], filters[n, j], bias, **arguments)[0]
            chosen = regions[n] == j
            torch.testing.assert_close(output[n][:, chosen], answer[:, chosen])


@pytest.mark.parametrize("backend", CAN_RUN)
@pytest.mark.parametrize("groups", [1, 2])
def test_guide_gradient_is_that_of_the_relaxed_sum_with_the_hard_forward(backend, groups):
    input, filters, guide, bias, arguments = make(groups=groups, padding=1)
    output, grad_input, grad_filters, grad_guide, grad_bias = forward_backward(
        (input, filters, guide, bias), backend, arguments
    )
    leaves = [tensor.clone().requires_grad_() for tensor in (input, filters, guide, bias)]
    answers = torch.stack(
        [
            torch.cat([F.conv2d(leaves[0][n : n + 1], leaves[1][n, j], None, **arguments) for n in range(2)])
            for j in range(3)
        ],
        1,
    )
    soft = leaves[2].softmax(1)
    hard = F.one_hot(guide.argmax(1), 3).permute(0, 3, 1, 2).to(soft.dtype)
    # Hard in value, soft in the guide's gradient: input and filters see `hard`, the guide sees `soft`.
    relaxed = (answers * hard.unsqueeze(2)).sum(1) + leaves[3].view(1, -1, 1, 1)
    relaxed = relaxed + (answers.detach() * (soft - soft.detach()).unsqueeze(2)).sum(1)
    expected = torch.autograd.grad(relaxed, leaves, upstream_of(output))
    torch.testing.assert_close(output, relaxed.detach())
    for got, want in zip((grad_input, grad_filters, grad_guide, grad_bias), expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("backend", CAN_RUN)
@pytest.mark.parametrize("own", [True, False])
def test_gradcheck_of_input_filters_and_bias(backend, own):
    input, filters, guide, bias, arguments = make(c=2, o=2, size=(4, 3), own=own, padding=1)

    def function(input, filters, bias):
        return region_conv2d(input, filters, guide, bias, backend=backend, **arguments)

    leaves = [tensor.requires_grad_() for tensor in (input, filters, bias)]
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("backend", CAN_RUN)
def test_guide_grad_scale_scales_the_guides_gradient_alone(backend):
    *tensors, arguments = make()
    once = forward_backward(tensors, backend, arguments)
    thrice = forward_backward(tensors, backend, dict(arguments, guide_grad_scale=3.0))
    for i, (a, b) in enumerate(zip(once, thrice, strict=True)):
        torch.testing.assert_close(b, 3 * a if i == 3 else a)


@pytest.mark.parametrize("backend", CAN_RUN)
@pytest.mark.parametrize("own", [True, False])
def test_topk_guide_gradient_is_that_of_the_softmax_over_the_most_likely(backend, own):
    *tensors, arguments = make(m=4, own=own, padding=1)
    guide = tensors[2]
    full = forward_backward(tensors, backend, arguments)
    for k in (2, 3):
        # Where all but k regions are out of reach, the full softmax is that of the k.
        least = guide.sort(1, descending=True).values[:, k - 1 : k]
        out_of_reach = torch.where(guide < least, guide - 1e3, guide)
        want = forward_backward([*tensors[:2], out_of_reach, tensors[3]], backend, arguments)[3]
        got = forward_backward(tensors, backend, dict(arguments, guide_grad="topk", guide_topk=k))
        torch.testing.assert_close(got[3], want)
        assert not torch.equal(got[3], full[3])
        for i in (0, 1, 2, 4):
            torch.testing.assert_close(got[i], full[i])
    for k in (4, 9):
        got = forward_backward(tensors, backend, dict(arguments, guide_grad="topk", guide_topk=k))
        torch.testing.assert_close(got[3], full[3])


@pytest.mark.parametrize("backend", CAN_RUN)
@pytest.mark.parametrize(
    "no_gradient", [{"guide_grad": "none"}, {"guide_grad_scale": 0}, {"guide_grad": "topk", "guide_topk": 1}]
)
def test_a_guide_without_gradient_gets_zeros(backend, no_gradient):
    # Zeros and not None: DistributedDataParallel waits for every parameter's gradient.
    *tensors, arguments = make()
    assert (forward_backward(tensors, backend, dict(arguments, **no_gradient))[3] == 0).all()


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(
    "dtype, rtol, atol",
    [(torch.float32, 1e-4, 1e-4), (torch.bfloat16, 4e-2, 2e-1), (torch.float16, 5e-3, 3e-2)],
    ids=["float32", "bfloat16", "float16"],
)
def test_every_dtype(backend, dtype, rtol, atol):
    *tensors, arguments = make(dtype=dtype, padding=1, groups=2)
    expected = forward_backward([tensor.double() for tensor in tensors], "reference", arguments)
    for got, want in zip(forward_backward(tensors, backend, arguments), expected, strict=True):
        assert got.dtype is dtype
        torch.testing.assert_close(got.double(), want, rtol=rtol, atol=atol)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("guide_grad", ["full", "topk"])
def test_a_response_may_be_beyond_fp16(backend, guide_grad):
    """300 * 300, in a gradient of 7500."""
    filters = torch.tensor([300.0, 200.0, 0.0]).half().view(1, 3, 1, 1, 1, 1)
    guide = torch.tensor([0.0, 0.0, -1e4]).view(1, 3, 1, 1).requires_grad_()
    output = region_conv2d(torch.ones(1, 1, 1, 1).half(), filters, guide, backend=backend, guide_grad=guide_grad)
    output.backward(torch.full_like(output, 300.0))
    torch.testing.assert_close(guide.grad.flatten(), torch.tensor([7500.0, -7500.0, 0.0]))


@pytest.mark.parametrize("backend", CAN_RUN)
def test_an_infinite_gradient_stays_in_its_region(backend):
    filters = torch.ones(1, 2, 1, 1, 1, 1).requires_grad_()
    guide = torch.eye(2).view(1, 2, 1, 2)
    output = region_conv2d(torch.ones(1, 1, 1, 2), filters, guide, backend=backend, guide_grad="none")
    output.backward(torch.tensor([float("inf"), 1.0]).view(1, 1, 1, 2))
    assert filters.grad.flatten().tolist() == [float("inf"), 1.0]


@pytest.mark.parametrize("module, backend", [(sorted_, "sorted"), (batched, "batched")])
def test_half_precision_adds_up_in_fp32(monkeypatch, module, backend):
    """In bf16 a sum of ones stops at 256."""
    monkeypatch.setattr(module, "_CHUNK_NUMEL", 1)
    filters = torch.ones(1, 2, 1, 1, 1, 1).bfloat16().requires_grad_()
    input, guide = torch.ones(512, 1, 1, 1).bfloat16(), torch.zeros(512, 2, 1, 1)
    output = region_conv2d(input, filters, guide, backend=backend, guide_grad="none")
    output.backward(torch.ones_like(output))
    assert filters.grad.flatten().tolist() == [512, 0]


@pytest.mark.parametrize("groups", [1, 2])
def test_products_as_pointwise_convolutions_equal_the_oracle(monkeypatch, groups):
    monkeypatch.setattr(sorted_, "_ONEDNN_NUMEL", 0)
    *tensors, arguments = make(groups=groups)
    assert_like_reference("sorted", tensors, arguments)


@pytest.mark.parametrize("backend", CAN_RUN)
def test_channels_last_is_kept(backend):
    input, filters, guide, bias, arguments = make()
    assert region_conv2d(input, filters, guide, bias, backend=backend, **arguments).is_contiguous()
    input = input.contiguous(memory_format=torch.channels_last)
    output = region_conv2d(input, filters, guide, bias, backend=backend, **arguments)
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_ties_go_to_the_lowest_index():
    guide = torch.tensor([1.0, 2.0, 2.0, 2.0]).view(1, 4, 1, 1).expand(2, 4, 40, 30)
    for layout in (guide, guide.contiguous(), guide.contiguous(memory_format=torch.channels_last)):
        assert (region_map(layout) == 1).all()


def test_one_region_is_conv2d_and_its_guide_has_no_gradient():
    input, filters, guide, bias, arguments = make(m=1, own=False, padding=1)
    output, *_, grad_guide, _ = forward_backward((input, filters, guide, bias), None, arguments)
    torch.testing.assert_close(output, F.conv2d(input, filters[0, 0], bias, **arguments))
    assert (grad_guide == 0).all()


@pytest.mark.parametrize("backend", FAST)
def test_autocast_leaves_the_guide_in_fp32(backend):
    input, filters, guide, bias, arguments = make(dtype=torch.float32, m=2)
    # Apart by less than bf16 can tell: a cast of the guide would tie, and region 0 would win everywhere.
    guide = torch.stack([torch.ones_like(guide[:, 0]), 1 + 1e-4 * guide[:, 1]], 1).requires_grad_()
    with torch.autocast(input.device.type, torch.bfloat16):
        output = region_conv2d(input, filters, guide, bias, backend=backend, **arguments)
    assert output.dtype is torch.bfloat16
    exact = region_conv2d(input, filters, guide, bias, backend="reference", **arguments)
    torch.testing.assert_close(output.float(), exact, rtol=3e-2, atol=2e-1)
    output.sum().backward()
    assert guide.grad.dtype is torch.float32


def test_autocast_leaves_fp64_alone_as_conv2d_does():
    *tensors, arguments = make()
    with torch.autocast(tensors[0].device.type, torch.bfloat16):
        output = region_conv2d(*tensors, **arguments)
    torch.testing.assert_close(output, region_conv2d(*tensors, **arguments), rtol=0, atol=0)


def test_double_backward_says_that_there_is_none():
    *tensors, arguments = make()
    leaves = [tensor.requires_grad_() for tensor in tensors]
    output = region_conv2d(*leaves, **arguments)
    (grad,) = torch.autograd.grad(output.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="region_conv2d has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("own", [True, False])
def test_opcheck(backend, own):
    input, filters, guide, _, _ = make(own=own, padding=1)
    leaves = [tensor.requires_grad_() for tensor in (input, filters, guide)]
    last = leaves[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    for image, candidates in ((leaves[0], 3), (last, 2)):
        arguments = (image, *leaves[1:], [1, 1], [1, 1], [1, 1], 1, candidates, 1.0, backend)
        torch.library.opcheck(torch.ops.drconv_mm.region_conv2d.default, arguments)


def test_compiles_as_one_graph_of_dynamic_shape():
    function = torch.compile(region_conv2d, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((7, 5), (9, 8), (6, 11)):
        *tensors, arguments = make(size=size, padding=1)
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        output = function(*leaves, **arguments)
        torch.testing.assert_close(output, region_conv2d(*tensors, **arguments))
        output.sum().backward()
        assert leaves[2].grad.abs().sum() > 0


def test_flop_counter_counts_a_standard_convolution():
    input, filters, guide, bias, arguments = make(padding=1, groups=2)

    def count(function):
        with FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops()

    plain = count(lambda: F.conv2d(input, filters[0, 0], bias, **arguments))
    assert count(lambda: region_conv2d(input, filters, guide, bias, **arguments)) == plain > 0

    filters.requires_grad_(), input.requires_grad_(), guide.requires_grad_()
    for guide_grad, topk, products in (("full", 2, 3), ("topk", 2, 2), ("topk", 9, 3), ("none", 2, 0)):
        arguments.update(guide_grad=guide_grad, guide_topk=topk)
        total = count(lambda: region_conv2d(input, filters, guide, bias, **arguments).sum().backward())
        assert total == (1 + 2 + products) * plain


def test_memory_does_not_grow_with_m():
    """Peak of live tensors inside the operator, output and filters left out."""

    def peak(m):
        input, filters, guide, _, arguments = make(n=2, c=64, o=32, m=m, kernel=(3, 3), size=(40, 40), padding=1)
        filters, arguments["backend"] = filters.float(), "sorted"
        input, guide = input.float().contiguous(memory_format=torch.channels_last), guide.float()
        with torch.profiler.profile(profile_memory=True) as profiler:
            region_conv2d(input, filters, guide, **arguments)
        live = highest = 0
        for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                live += event.nbytes()
                highest = max(highest, live)
        output = 2 * 32 * 40 * 40 * 4
        # `sorted` reads the filters in another order: that copy is theirs.
        return highest - output - filters.numel() * 4

    assert 0 < peak(16) <= 1.2 * peak(2)


def test_environment_variable_chooses_the_backend(monkeypatch):
    *tensors, arguments = make()
    calls = []
    spy = BACKENDS["dense"]._replace(forward=lambda *args: calls.append(1) or BACKENDS["sorted"].forward(*args))
    monkeypatch.setitem(BACKENDS, "dense", spy)
    monkeypatch.setenv(ENV, "dense")
    region_conv2d(*tensors, **arguments)
    assert calls
    monkeypatch.setenv(ENV, "fastest")
    with pytest.raises(ValueError, match=r"DRCONV_MM_BACKEND='fastest'.*sorted.*batched.*dense.*reference"):
        region_conv2d(*tensors, **arguments)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    "problem, name, on_gpu",
    [
        (dict(), "batched", "batched"),
        (dict(c=64, o=64, size=(24, 24)), "sorted", "batched"),
        (dict(c=64, o=64, size=(8, 8), n=16, own=False), "sorted", "batched"),
        (dict(c=256, o=256, size=(40, 40), n=1, dtype=torch.float32), "sorted", "dense"),
        (dict(c=6, o=6, groups=6), "dense", "dense"),
        (dict(m=1), "dense", "batched"),
    ],
)
def test_the_automatic_choice(monkeypatch, problem, name, on_gpu, compiled):
    *tensors, arguments = make(**problem)
    chosen = []
    for backend in list(BACKENDS):
        spy = BACKENDS[backend]._replace(
            forward=lambda *args, backend=backend: chosen.append(backend) or BACKENDS["reference"].forward(*args)
        )
        if backend != "reference":
            monkeypatch.setitem(BACKENDS, backend, spy)
    monkeypatch.setitem(BACKENDS, "reference", BACKENDS["reference"]._replace(forward=dense.forward))
    if tensors[0].is_cuda:
        name = on_gpu
    elif compiled and problem != dict(m=1):
        name = "cpu"
    elif not compiled:
        monkeypatch.setitem(BACKENDS, "cpu", BACKENDS["cpu"]._replace(why_not=lambda device: "no compiler"))
    region_conv2d(*tensors, **arguments)
    assert chosen == [name]


def test_a_named_backend_that_cannot_run_says_why_and_an_automatic_choice_goes_on(monkeypatch):
    *tensors, arguments = make()
    broken = Backend(None, None, lambda device: "no compiler was found")
    monkeypatch.setitem(BACKENDS, "batched", broken)
    with pytest.raises(RuntimeError, match=r"backend='batched' can't run on \S+: no compiler was found"):
        region_conv2d(*tensors, backend="batched", **arguments)
    region_conv2d(*tensors, **arguments)


class TestErrors:
    """Each message names the argument, the value and what would do."""

    @staticmethod
    def check(error, match, **changed):
        input, filters, guide, bias, arguments = make(groups=2)
        call = dict(input=input, filters=filters, guide=guide, bias=bias, **arguments)
        call.update({key: value(call[key]) if callable(value) else value for key, value in changed.items()})
        with pytest.raises(error, match=match):
            region_conv2d(**call)

    def test_dimensions(self):
        self.check(ValueError, r"input must be 4-D.*\(4, 7, 5\).*unsqueeze\(0\)", input=lambda t: t[0])
        self.check(ValueError, "filters must be 6-D", filters=lambda t: t[0])
        self.check(ValueError, "guide must be 4-D", guide=lambda t: t[0])

    def test_guide(self):
        self.check(ValueError, r"guide must be \[N=2, m, Ho=5, Wo=4\].*interpolate", guide=lambda t: t[..., :-1])
        self.check(ValueError, "guide must have one channel a region, m=3 as filters, got 2", guide=lambda t: t[:, :2])
        self.check(ValueError, r"guide must be \[N=2", guide=lambda t: t[:1])

    def test_filters(self):
        self.check(ValueError, r"filters must hold 1 or N=2 samples, got 3", filters=lambda t: t[[0, 0, 1]])
        self.check(ValueError, r"C/groups=2.*got shape \(2, 3, 6, 1, 3, 2\)", filters=lambda t: t[:, :, :, :1])
        self.check(ValueError, r"m >= 1", filters=lambda t: t[:, :0])
        self.check(ValueError, r"too small for kernel", filters=lambda t: t.repeat(1, 1, 1, 1, 4, 1))

    def test_no_channels(self):
        self.check(
            ValueError,
            "must have channels, got C=0 and O=6",
            input=lambda t: t[:, :0],
            filters=lambda t: t[:, :, :, :0],
        )
        self.check(ValueError, "got C=4 and O=0", filters=lambda t: t[:, :, :0], bias=lambda t: t[:0])

    def test_groups(self):
        self.check(ValueError, "groups=3 must divide the 4 input and 6 output channels", groups=3)
        self.check(ValueError, "groups must be an integer of at least 1, got 0", groups=0)

    def test_bias(self):
        self.check(ValueError, r"bias must be \[O=6\], got shape \(5,\)", bias=lambda t: t[:-1])

    def test_dtypes(self):
        self.check(TypeError, r"input must be floating point, got torch.int64.*\.float\(\)", input=lambda t: t.long())
        self.check(TypeError, "filters is torch.float32 and input is torch.float64", filters=lambda t: t.float())
        self.check(TypeError, "guide is torch.bfloat16 and input is torch.float64", guide=lambda t: t.bfloat16())

    def test_devices(self):
        self.check(ValueError, r"filters is on meta and input is on (cpu|cuda:0);", filters=lambda t: t.to("meta"))

    def test_geometry(self):
        self.check(ValueError, "stride must be an integer of at least 1, or a pair of them, got 0", stride=0)
        self.check(ValueError, r"dilation must be .* got \(1, 2, 3\)", dilation=(1, 2, 3))
        self.check(ValueError, "padding must be .* got -1", padding=-1)
        self.check(ValueError, "padding must be an integer, a pair, 'same' or 'valid', got 'full'", padding="full")
        self.check(ValueError, "padding='same' needs stride 1", padding="same", stride=2)

    def test_guide_gradient(self):
        self.check(
            ValueError, r"guide_grad='top' is not known; choose one of \['full', 'topk', 'none'\]", guide_grad="top"
        )
        self.check(ValueError, "guide_topk must be an integer of at least 1, got 0", guide_grad="topk", guide_topk=0)

    def test_backend(self):
        self.check(ValueError, r"backend='cuda' is not a backend", backend="cuda")
