"""An accelerator that is not there: its tensors say `pretend:0`, count on the processor, and will not meet the processor's own.

`import pretend_device` registers it; `.to("pretend")` moves a model or a tensor. Whatever would end on a GPU because a tensor was left on the processor ends here too, and all numbers are the processor's.
It knows nothing of memory, speed, kernels or generators of a device; autocast is that of the few operations in `HALVED`."""

import contextlib

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_map

NAME = "pretend"
DEVICE = torch.device("cpu")  # replaced below, once the name is known
MOVES = ("aten::_to_copy", "aten::copy_")  # what may read one device and write another
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")  # take the processor's indices, as CUDA does, if what is indexed is here
NO_SCALARS = ("aten::cat", "aten::stack")  # elsewhere a number (no dimensions) of the processor is welcome
HALVED = ("linear", "conv2d", "matmul", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention")


class There(torch.Tensor):
    "A tensor of the pretend device; `here` holds its values."

    @staticmethod
    def __new__(cls, here: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype, device=DEVICE, requires_grad=False)
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return count(operator, args, kwargs or {})

    def __repr__(self, **_):
        return f"there({self.detach().here})"

    def __reduce_ex__(self, protocol):
        return _there_again, (self.detach().cpu(),)

    def numpy(self, **_):
        raise TypeError("can't convert a tensor of the pretend device to numpy; use .cpu() first")

    __array__ = numpy

    def untyped_storage(self):
        return self.here.untyped_storage()

    def tolist(self):
        return self.detach().cpu().tolist()

    def view(self, *shape):
        return There(self.here.view(*shape)) if isinstance(shape[0], torch.dtype) else super().view(*shape)

    def __getitem__(self, index):
        return super().__getitem__(_as_tensors(index))

    def __setitem__(self, index, value):
        super().__setitem__(_as_tensors(index), value)


def _there_again(here: torch.Tensor) -> There:
    return There(here)


def _as_tensors(index):
    "Lists of indices would be made into tensors of this device below Python, where nobody can."
    return tuple(torch.tensor(part) if isinstance(part, (list, range, tuple)) else part for part in (index if isinstance(index, tuple) else (index,)))


def _here(value):
    if isinstance(value, There):
        return value.here
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _there(value):
    return There(value) if isinstance(value, torch.Tensor) and not isinstance(value, There) else value


def _check(name: str, args, values: list) -> None:
    "RuntimeError for what a GPU would refuse."
    ours = [value for value in values if isinstance(value, There)]
    strangers = [value for value in values if isinstance(value, torch.Tensor) and not isinstance(value, There) and (value.dim() > 0 or name in NO_SCALARS)]
    if name in INDEXED:
        if not isinstance(args[0], There) and ours:
            raise RuntimeError(f"{name}: indices should be on the CPU, as the indexed tensor is, found pretend:0")
        strangers = [value for value in strangers if "put" in name and value is args[2]]
    if ours and strangers and name not in MOVES:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found pretend:0 and cpu {tuple(strangers[0].shape)}")
    chosen = [value for value in values if isinstance(value, torch.Generator)]
    if chosen and chosen[0].device.type == "cpu" and name not in MOVES:
        raise RuntimeError(f"{name}: expected a generator of the device pretend, found one of cpu")


def count(operator, args, kwargs):
    "Do it on the processor and bring the result back."
    name, values = operator._schema.name, tree_flatten((args, kwargs))[0]
    _check(name, args, values)
    if name == "aten::_to_copy":
        options = dict(kwargs)
        device = options.pop("device", None)
        result = operator(_here(args[0]), **options)
        return There(result) if (isinstance(args[0], There) if device is None else torch.device(device).type == NAME) else result
    if name == "aten::copy_" and not isinstance(args[0], There):
        args[0].copy_(_here(args[1]))
        return args[0]
    plain_args, plain_kwargs = tree_map(_here, (args, kwargs))
    result = operator(*plain_args, **plain_kwargs)
    if "out" in kwargs:
        return kwargs["out"]
    return args[0] if operator._schema.is_mutable and args and isinstance(args[0], There) else tree_map(_there, result)


def _halving(name: str):
    "The operation under autocast: in its precision."
    operator = getattr(torch.ops.aten, name)

    def halved(*args, **kwargs):
        kind = torch.get_autocast_dtype(NAME)
        args, kwargs = tree_map(lambda value: value.to(kind) if isinstance(value, torch.Tensor) and value.is_floating_point() and value.device.type == NAME else value, (args, kwargs))
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            return operator(*args, **kwargs)

    return halved


def _made_here_first(make):
    "torch.tensor and torch.as_tensor reach for the device below Python."

    def made(*args, device=None, **kwargs):
        return make(*args, **kwargs).to(NAME) if device is not None and torch.device(device).type == NAME else make(*args, device=device, **kwargs)

    return made


def _register() -> list:
    "Tell PyTorch about the device. What is returned must be kept."
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    module = getattr(torch, NAME)
    told = dict(is_available=True, is_initialized=True, device_count=1, current_device=0, _is_in_bad_fork=False, is_bf16_supported=True, synchronize=None, empty_cache=None, manual_seed_all=None, set_rng_state=None,
                set_device=None, get_amp_supported_dtype=[torch.bfloat16, torch.float16])  # fmt: skip
    for name, value in told.items():
        setattr(module, name, lambda *_, value=value, **__: value)
    module.get_rng_state, module.device = (lambda *_: torch.get_rng_state()), (lambda *_: contextlib.nullcontext())
    everything, halved = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everything.fallback(lambda operator, *args, **kwargs: count(operator, args, kwargs), dispatch_key="PrivateUse1")
    everything.fallback(torch.library.fallthrough_kernel, dispatch_key="AutocastPrivateUse1")
    for name in HALVED:
        halved.impl(name, _halving(name), "AutocastPrivateUse1")
    torch.tensor, torch.as_tensor = _made_here_first(torch.tensor), _made_here_first(torch.as_tensor)
    torch.__future__.set_swap_module_params_on_conversion(True)  # a parameter that moves stays the parameter an optimiser knows, as between processor and GPU
    return [everything, halved]


_KEPT = _register()
DEVICE = torch.device(NAME, 0)
