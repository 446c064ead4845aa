"""The CUDA C++ kernels behind their launchers, compiled for the host where fibers are the threads.

What the kernels compute is tested in tests/csrc; here it is the way to them: what is handed over,
what is refused, and when "auto" chooses them.
"""

import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import vmf_kernels
from setup import CUDA_ARCHITECTURES
from vmf_kernels import _cuda, _triton, use_backend
from vmf_kernels.backends import OPS
from vmf_kernels.layout import to_layout
from vmf_kernels.ops.depthwise_conv3d import cuda, library, reference

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-O1", "-std=c++20", "-fPIC", "-shared", "-Wno-unknown-pragmas"]
GEOMETRY = ((1, 2, 2), (1, 0, 1, 1, 0, 1), (1, 1, 1))


@pytest.fixture(scope="module")
def library_of_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`_cuda` with the host's kernels; tensors on the CPU are what it is given."""
    cxx = shutil.which("g++")
    if cxx is None:
        pytest.skip("there is no g++")
    path = tmp_path_factory.mktemp("cuda") / "libvmf_cuda.so"
    folder = ROOT / "csrc" / "cuda"
    sources = [str(path) for path in (folder / "exports.cpp", *sorted(folder.glob("*.cu")))]
    includes = [f"-I{ROOT / p}" for p in ("csrc", "csrc/include", "tests/csrc")]
    command = [cxx, *FLAGS, *includes, "-x", "c++", *sources, "-o", str(path)]
    subprocess.run(command, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cuda, "PATH", path)
        patch.setattr(_cuda, "device", lambda tensor: (2, 0))
        _cuda.functions.cache_clear()
        assert _cuda.missing() is None
        yield
    _cuda.functions.cache_clear()


def samples(dtype: torch.dtype, last: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input, weight, bias and output's gradient, some of them not dense."""
    input = torch.randn(2, 4, 4, 6, 8, dtype=dtype).transpose(0, 1).contiguous().transpose(0, 1)
    if last:
        input = torch.randn(2, 4, 6, 8, 6, dtype=dtype)[..., 1:5].movedim(-1, 1)
    weight, bias = torch.randn(8, 1, 3, 3, 3, dtype=dtype), torch.randn(16, dtype=dtype)[::2]
    output = reference.depthwise_conv3d(input, weight, bias, *GEOMETRY)
    return input, weight, bias, to_layout(torch.randn_like(output), last)


@pytest.mark.usefixtures("library_of_host")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_launchers(last: bool, dtype: torch.dtype) -> None:
    input, weight, bias, grad = samples(dtype, last)
    size, kernel = list(input.shape), list(weight.shape[2:])
    assert cuda.FORWARD.refuses(input, weight, bias, *GEOMETRY) is None
    assert cuda.TRANSPOSED.refuses(grad, weight, None, size, *GEOMETRY) is None
    assert cuda.GRAD_WEIGHT.refuses(grad, input, kernel, *GEOMETRY) is None

    def check(ours: Tensor, theirs: Tensor) -> None:
        order = torch.channels_last_3d if last and ours.shape[1] > 1 else torch.contiguous_format
        assert ours.dtype == dtype and ours.is_contiguous(memory_format=order)
        torch.testing.assert_close(ours, theirs)

    forward = (input, weight, bias, *GEOMETRY)
    check(cuda.depthwise_conv3d(*forward), reference.depthwise_conv3d(*forward))
    for b in (None, bias[:4]):
        back = (grad, weight, b, size, *GEOMETRY)
        theirs = reference.depthwise_conv_transpose3d(*back)
        check(cuda.depthwise_conv_transpose3d(*back), theirs)
    sums = (grad, input, kernel, *GEOMETRY)
    expected = reference.depthwise_conv3d_grad_weight(*sums)
    for ours, theirs in zip(cuda.depthwise_conv3d_grad_weight(*sums), expected, strict=True):
        assert ours.is_contiguous()
        torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("library_of_host")
def test_gradients_are_those_of_the_same_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the operators, whose road to the launchers a CPU tensor takes only here."""
    operators = library.CUDA_OPERATORS
    ran = []
    for operator in (operators.forward, operators.transpose, operators.grad_weight):
        launch = operator._launcher

        def below(*args: object, launch: object = launch, name: str = operator.name) -> object:
            ran.append(name)
            return launch(*args)  # type: ignore[operator]

        monkeypatch.setattr(operator, "below_autograd", below)
    results = []
    input, weight, bias, grad = samples(torch.float32)
    for function in (operators.forward, library.OPERATORS.forward):
        leaves = [x.detach().clone().requires_grad_() for x in (input, weight, bias)]
        output = function(*leaves, *GEOMETRY)
        grads = torch.autograd.grad(output, leaves, grad, create_graph=True)
        results.append([output, *grads, *torch.autograd.grad(grads[0].square().sum(), leaves[1])])
    assert set(ran) == {
        "depthwise_conv3d_cuda",
        "depthwise_conv_transpose3d_cuda",
        "depthwise_conv3d_grad_weight_cuda",
    }
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("library_of_host")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kernel": (3, 1, 1)}, "for kernels 1x3x3"),
        ({"dilation": (1, 2, 1)}, "for kernels 1x3x3"),
        ({"stride": (2, 2, 2)}, "for kernels 1x3x3"),
        ({"dtype": torch.float64}, None),  # which the backend's own check says
        ({"format": torch.channels_last_3d}, None),
        ({"format": torch.channels_last_3d, "kernel": (3, 1, 1)}, None),
        ({"format": torch.channels_last_3d, "dtype": torch.bfloat16}, None),
        (
            {"format": torch.channels_last_3d, "dtype": torch.bfloat16, "channels": 3},
            "the number of channels must be even",
        ),
        ({"format": torch.channels_last_3d, "multiplier": 400}, "the channel multiplier"),
        ({"batch": 0}, "with elements"),
        ({"multiplier": 200}, "the channel multiplier is too large"),
    ],
)
def test_what_the_kernels_are_not_for(change: dict[str, object], reason: str | None) -> None:
    channels = change.get("channels", 2)
    shape = (change.get("batch", 1), channels, 4, 6, 8)
    input = torch.zeros(shape, dtype=change.get("dtype", torch.float32))  # type: ignore[call-overload]
    input = input.contiguous(memory_format=change.get("format", torch.contiguous_format))
    kernel, outputs = change.get("kernel", (3, 3, 3)), channels * change.get("multiplier", 1)  # type: ignore[operator]
    weight = input.new_zeros((outputs, 1, *kernel))  # type: ignore[misc]
    geometry = (change.get("stride", (1, 1, 1)), (1,) * 6, change.get("dilation", (1, 1, 1)))
    told = cuda.FORWARD.refuses(input, weight, None, *geometry)
    assert told is None if reason is None else reason in str(told)


@pytest.mark.usefixtures("library_of_host")
@pytest.mark.parametrize(
    ("capability", "driver", "told"),
    [
        ((7, 5), 13000, "its CUDA kernels are for compute capability 8.0 and newer (got 7.5)"),
        ((8, 0), 12080, "its CUDA kernels were built with CUDA 13 (the driver has CUDA 12)"),
        ((8, 0), 13000, None),
        ((10, 3), 13010, None),
    ],
)
def test_gpus_and_drivers_for_which_they_are_not_compiled(
    capability: tuple[int, int], driver: int, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _cuda.functions()["version"]() == 0  # on the host
    monkeypatch.setitem(_cuda.functions(), "version", lambda: 13020)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: driver, raising=False)
    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    _cuda.too_old.cache_clear()
    assert tuple(int(digit) for digit in CUDA_ARCHITECTURES.split()[0]) == _cuda.OLDEST
    input, weight = torch.zeros(1, 2, 6, 8, 8), torch.zeros(2, 1, 3, 3, 3)
    reason = cuda.FORWARD.refuses(input, weight, None, (1, 1, 1), (1,) * 6, (1, 1, 1))
    assert reason == told
    _cuda.too_old.cache_clear()


@pytest.mark.parametrize("name", ["depthwise_conv3d", "depthwise_conv_transpose3d"])
def test_on_a_cpu_the_backend_says_what_it_is_for(name: str) -> None:
    function = getattr(vmf_kernels, name)
    x, weight = torch.zeros(1, 2, 3, 4, 5), torch.zeros(2, 1, 3, 3, 3)
    with use_backend("cuda"), pytest.raises(NotImplementedError, match="cannot run this call"):
        function(x, weight)
    backend = next(b for b in OPS[name].backends if b.name == "cuda")
    geometry = (1, 0, 0, 1) if "transpose" in name else (1, 0, 1)
    prepared = OPS[name].prepare(x, weight, None, *geometry)
    assert "it runs on CUDA" in str(backend.cannot_run(*prepared))


PARTS = ("depthwise_conv3d", "depthwise_conv_transpose3d", "depthwise_conv3d_grad_weight")


def kinds_of(input: Tensor, weight: Tensor, grad: Tensor, stride: int) -> list[str]:
    """The modules of the kernels that "auto" takes, for each of PARTS."""
    geometry = ((1, stride, stride), (1,) * 6, (1, 1, 1))
    operators = library.OPERATORS
    calls = (
        (operators.forward, (input, weight, None, *geometry)),
        (operators.transpose, (grad, weight, None, list(input.shape), *geometry)),
        (operators.grad_weight, (grad, input, list(weight.shape[2:]), *geometry)),
    )
    chosen = [operator._launcher.choose(*args) for operator, args in calls]
    return [kernels.module.rpartition(".")[2] for kernels in chosen]


@pytest.mark.usefixtures("library_of_host")
@pytest.mark.parametrize(
    ("last", "kernel", "stride", "multiplier", "expected"),
    [
        (False, 3, 1, 1, ["cuda", "cuda", "cuda"]),
        (False, 3, 2, 4, ["triton", "triton", "triton"]),
        (True, 3, 1, 1, ["triton", "triton", "cuda"]),
        (True, 3, 2, 6, ["cuda", "triton", "cuda"]),
        (True, 5, 1, 1, ["triton", "triton", "triton"]),  # which nobody has timed
    ],
)
def test_auto_takes_for_each_part_what_was_measured_to_be_faster(
    last: bool, kernel: int, stride: int, multiplier: int, expected: list[str]
) -> None:
    input = to_layout(torch.zeros(1, 2, 6, 8, 8), last)
    weight = torch.zeros(2 * multiplier, 1, kernel, kernel, kernel)
    out = F.conv3d(input, weight, stride=(1, stride, stride), padding=1, groups=2)
    assert kinds_of(input, weight, to_layout(out, last), stride) == expected


@pytest.mark.usefixtures("library_of_host")
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_kernels_tiles_and_why_are_told(
    last: bool, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_triton, "_FOUND", False)
    input, weight = to_layout(torch.zeros(batch, 4, 8, 14, 14), last), torch.zeros(8, 1, 3, 3, 3)
    told = library.OPERATORS.told(input, weight, None, (1, 1, 1), (1,) * 6, (1, 1, 1))
    results = {"forward": input.numel() * 2, "input gradient": input.numel(), "weight gradient": 0}
    lines = dict(line.split(": ", 1) for line in told.splitlines())
    assert lines.keys() == results.keys()
    for part, size in results.items():
        numbers = re.match(
            r"CUDA C\+\+, (\d+) blocks of (\d+) channels, (\d+) frames and (\d+) positions: "
            r"[\d.]+ times Triton's speed, (measured|estimated)$",
            lines[part],
        )
        assert numbers is not None, lines[part]
        blocks, *tile = map(int, numbers.groups()[:4])
        assert blocks > 0 and all(n > 0 for n in tile)
        if part != "weight gradient":  # tiles cover the result, and the most of them lies in it
            assert size <= blocks * math.prod(tile) <= 4 * size


@pytest.mark.usefixtures("library_of_host")
def test_why_triton_runs_a_part_is_told() -> None:
    input, weight = torch.zeros(1, 2, 6, 8, 8), torch.zeros(8, 1, 3, 3, 3)
    told = library.OPERATORS.told(input, weight, None, (1, 2, 2), (1,) * 6, (1, 1, 1))
    for line in told.splitlines():
        assert re.search(r": Triton, elements .*; CUDA C\+\+: Triton's kernel was measured", line)


@pytest.mark.usefixtures("library_of_host")
def test_auto_takes_them_where_there_is_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "_FOUND", False)
    input, weight = torch.zeros(1, 2, 6, 8, 8), torch.zeros(8, 1, 3, 3, 3)
    assert kinds_of(input, weight, torch.zeros(1, 8, 6, 4, 4), 2) == ["cuda"] * 3
    prepared = OPS["depthwise_conv3d"].prepare(input, weight, None, (1, 2, 2), 1, 1)
    backend = next(b for b in OPS["depthwise_conv3d"].backends if b.name == "cuda")
    assert backend.slower(*prepared) is None
    monkeypatch.undo()
    assert "Triton's kernel was measured to be" in str(backend.slower(*prepared))


@pytest.mark.usefixtures("library_of_host")
@pytest.mark.parametrize(("last", "stride"), [(False, 1), (True, 2)])
def test_public_calls_on_them(last: bool, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors pass for CUDA's, through all of Python but the stream."""
    monkeypatch.setattr(_triton, "_FOUND", False)
    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: -1, raising=False)
    ran = []
    run = _cuda.run
    monkeypatch.setattr(_cuda, "run", lambda name, *args: (ran.append(name), run(name, *args)))
    settings = ((1, stride, stride), 1)
    for _ in range(2):
        input, weight, bias, _ = samples(torch.float32, last)
        theirs = F.conv3d(input, weight, bias, *settings, groups=4)
        ours = vmf_kernels.depthwise_conv3d(input, weight, bias, *settings)
        torch.testing.assert_close(ours, theirs)
        leaves = [x.detach().clone().requires_grad_() for x in (input, weight, bias)]
        output = vmf_kernels.depthwise_conv3d(*leaves, *settings)
        grads = torch.autograd.grad(output.square().sum(), leaves)
        output = F.conv3d(*leaves, *settings, groups=4)
        for a, b in zip(grads, torch.autograd.grad(output.square().sum(), leaves), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert ran == [PARTS[0], *PARTS] * 2
    # Which hold functions of the fixture's library.
    for operator in vars(library.OPERATORS).values():
        assert operator._launcher.runs
        operator._launcher.runs.clear()


# Kernel, stride, size and channels: whole frames of several volumes, tiles of rows and of columns,
# rows that 16-byte loads can and cannot read, parts of T.
ON_A_GPU = [
    ((1, 3, 3), 1, (3, 20, 24), 5),
    ((1, 3, 3), 2, (3, 15, 15), 7),
    ((3, 3, 3), 1, (9, 56, 56), 3),
    ((3, 3, 3), 2, (4, 20, 133), 3),
    ((5, 3, 3), 1, (8, 7, 7), 40),
    ((5, 3, 3), 2, (3, 10, 300), 2),
    ((1, 5, 5), 1, (2, 16, 16), 9),
    ((1, 5, 5), 2, (2, 17, 9), 33),
    ((3, 5, 5), 1, (5, 14, 14), 24),
    ((5, 5, 5), 1, (6, 12, 10), 6),
    ((7, 7, 7), 1, (7, 9, 16), 4),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("kernel", "stride", "size", "channels"), ON_A_GPU)
def test_numbers_on_a_gpu(
    kernel: tuple[int, int, int],
    stride: int,
    size: tuple[int, int, int],
    channels: int,
    last: bool,
    multiplier: int,
    dtype: torch.dtype,
) -> None:
    """Output and gradients against the reference in double precision; the same bits twice."""
    if reason := _cuda.missing():
        pytest.skip(reason)
    channels += last and channels % 2
    x = to_layout(torch.randn(2, channels, *size, device="cuda", dtype=dtype), last)
    weight = torch.randn(channels * multiplier, 1, *kernel, device="cuda", dtype=dtype)
    bias = torch.randn(channels * multiplier, device="cuda", dtype=dtype)
    settings = ((1, stride, stride), tuple(k // 2 for k in kernel))
    exact = vmf_kernels.reference.depthwise_conv3d(x.double(), weight.double(), None, *settings)
    grad = torch.randn_like(exact).to(dtype)

    def training(backend: str, *tensors: Tensor) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in tensors]
        with use_backend(backend):
            output = vmf_kernels.depthwise_conv3d(*leaves, *settings)
        grads = torch.autograd.grad(output, leaves, grad.to(output.dtype))
        return [output.detach(), *grads]

    same = (list(kernel), *settings[:1], tuple(p for p in settings[1] for _ in range(2)), (1,) * 3)
    for operator, arguments in (  # else the reference would run, and agree with itself
        (library.CUDA_OPERATORS.forward, (x, weight, bias, *same[1:])),
        (library.CUDA_OPERATORS.transpose, (grad, weight, None, list(x.shape), *same[1:])),
        (library.CUDA_OPERATORS.grad_weight, (to_layout(grad, last), x, *same)),
    ):
        assert operator.refusal(*arguments) is None
    ours = training("cuda", x, weight, bias)
    theirs = training("reference", x.double(), weight.double(), bias.double())
    tolerance = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    for a, b, again in zip(ours, theirs, training("cuda", x, weight, bias), strict=True):
        assert torch.equal(a, again)
        assert (a.double() - b).norm() <= tolerance * b.norm()


@pytest.mark.gpu
def test_compiled_and_captured_on_a_gpu() -> None:
    if reason := _cuda.missing():
        pytest.skip(reason)
    x, weight = torch.randn(2, 8, 4, 20, 20, device="cuda"), torch.randn(8, 1, 3, 3, 3).cuda()

    def call(x: Tensor) -> Tensor:
        with use_backend("cuda"):
            return vmf_kernels.depthwise_conv3d(x, weight, None, 1, 1)

    expected = call(x)
    torch.testing.assert_close(torch.compile(call)(x), expected)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call(x)
    x.normal_()
    graph.replay()
    assert torch.equal(output, call(x))


def test_without_its_library_the_backend_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "PATH", ROOT / "no such file")
    _cuda.functions.cache_clear()
    try:
        assert "not built" in str(_cuda.missing())
        monkeypatch.setattr(_cuda, "PATH", Path(__file__))
        _cuda.functions.cache_clear()
        assert "do not load" in str(_cuda.missing())
    finally:
        _cuda.functions.cache_clear()
