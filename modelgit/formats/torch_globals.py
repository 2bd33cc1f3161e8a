"""The Python globals that a PyTorch checkpoint may hold: tensors, plain data, and the records that trainers keep.

None of them is ever imported or called here.  The list keeps files apart that name something else (`os.system`, a class
of somebody's script): loading those with `torch.load(weights_only=False)` runs their code.
"""

from __future__ import annotations

import re

__all__ = ["DTYPE_NAMES", "REBUILD", "STORAGE_DTYPES", "is_allowed"]

DTYPE_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "uint16": "U16", "int32": "I32", "uint32": "U32",
    "int64": "I64", "uint64": "U64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "complex64": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
"""torch's dtypes that have a name in safetensors' vocabulary, by torch's name."""

STORAGE_DTYPES = {
    "BoolStorage": ("BOOL", 1), "ByteStorage": ("U8", 1), "CharStorage": ("I8", 1), "ShortStorage": ("I16", 2),
    "IntStorage": ("I32", 4), "LongStorage": ("I64", 8), "HalfStorage": ("F16", 2), "BFloat16Storage": ("BF16", 2),
    "FloatStorage": ("F32", 4), "DoubleStorage": ("F64", 8), "ComplexFloatStorage": ("C64", 8),
    "UntypedStorage": ("U8", 1),
    # No name in safetensors' vocabulary: the bytes are kept as the nearest plain type, and have no logical tensor.
    "ComplexDoubleStorage": ("", 16), "QInt8Storage": ("", 1), "QUInt8Storage": ("", 1), "QInt32Storage": ("", 4),
    "QUInt4x2Storage": ("", 1), "QUInt2x4Storage": ("", 1),
}  # fmt: skip
"""Storage classes: the dtype of their elements ("" where there is none here) and the size of one in bytes."""

_OTHER_DTYPES = (
    "complex128", "complex32", "qint8", "quint8", "qint32", "quint4x2", "quint2x4", "bits8", "bits16", "bits1x8",
    "bits2x4", "bits4x2", "float4_e2m1fn_x2", "int1", "int2", "int3", "int4", "int5", "int6", "int7", "uint1", "uint2",
    "uint3", "uint4", "uint5", "uint6", "uint7", "float", "double", "half", "cfloat", "cdouble", "long", "int", "short",
)  # fmt: skip

REBUILD = {
    "_rebuild_tensor": "tensor", "_rebuild_tensor_v2": "tensor", "_rebuild_tensor_v3": "typed",
    "_rebuild_parameter": "parameter", "_rebuild_parameter_with_state": "parameter",
    "_rebuild_from_type_v2": "subclass", "_rebuild_qtensor": "other", "_rebuild_sparse_tensor": "other",
    "_rebuild_sparse_csr_tensor": "other", "_rebuild_nested_tensor": "other",
    "_rebuild_meta_tensor_no_storage": "other",
    "_rebuild_device_tensor_from_numpy": "other", "_rebuild_device_tensor_from_cpu_tensor": "other",
    "_rebuild_wrapper_subclass": "other",
}  # fmt: skip
"""Functions of torch that make tensors, by how their arguments are read."""

_ENUMS = re.compile(r"megatron(\.[a-z_]+)*\.enums")

_ALLOWED: dict[str, frozenset[str]] = {
    module: frozenset(names.split())
    for module, names in {
        "torch": "Size device Tensor Generator per_tensor_affine per_channel_affine per_tensor_symmetric"
        " per_channel_symmetric strided sparse_coo sparse_csr preserve_format contiguous_format channels_last "
        + " ".join((*DTYPE_NAMES, *_OTHER_DTYPES, *STORAGE_DTYPES)),
        "torch.cuda": " ".join(name for name in STORAGE_DTYPES if name != "UntypedStorage"),
        "torch.storage": "UntypedStorage TypedStorage _TypedStorage _UntypedStorage",
        "torch._utils": " ".join(name for name in REBUILD if name != "_rebuild_from_type_v2"),
        "torch._tensor": "_rebuild_from_type_v2",
        "torch.nn.parameter": "Parameter Buffer UninitializedParameter UninitializedBuffer",
        "torch.serialization": "_get_layout",
        "torch.torch_version": "TorchVersion",
        "torch.distributed.algorithms._checkpoint.checkpoint_wrapper": "CheckpointImpl",
        "collections": "OrderedDict defaultdict Counter deque",
        "builtins": "set frozenset dict list tuple int float complex bool str bytes bytearray slice range object",
        "__builtin__": "set frozenset dict list tuple int long float complex bool str unicode bytes bytearray slice"
        " range xrange object",
        "copyreg": "_reconstructor",
        "copy_reg": "_reconstructor",
        "_codecs": "encode",
        "argparse": "Namespace",
        "types": "SimpleNamespace",
        "typing": "Any",
        "datetime": "datetime date time timedelta timezone",
        "decimal": "Decimal",
        "fractions": "Fraction",
        "uuid": "UUID",
        "pathlib": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
        "pathlib._local": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
        "numpy": "ndarray dtype bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64",
        "numpy.core.multiarray": "_reconstruct scalar",
        "numpy._core.multiarray": "_reconstruct scalar",
        "numpy.core.numeric": "_frombuffer",
        "numpy._core.numeric": "_frombuffer",
        "numpy.dtypes": "BoolDType Int8DType Int16DType Int32DType Int64DType UInt8DType UInt16DType UInt32DType"
        " UInt64DType Float16DType Float32DType Float64DType StrDType BytesDType",
        "numpy.random._pickle": "__bit_generator_ctor __generator_ctor __randomstate_ctor",
        "omegaconf.base": "ContainerMetadata Metadata",
        "omegaconf.dictconfig": "DictConfig",
        "omegaconf.listconfig": "ListConfig",
        "omegaconf.nodes": "AnyNode StringNode IntegerNode FloatNode BooleanNode EnumNode",
        "pytorch_lightning.utilities.parsing": "AttributeDict",
        "lightning_fabric.utilities.data": "AttributeDict",
        "lightning.fabric.utilities.data": "AttributeDict",
        "pytorch_lightning.callbacks.model_checkpoint": "ModelCheckpoint",
        "pytorch_lightning.callbacks.early_stopping": "EarlyStopping",
        "transformers.trainer_utils": "IntervalStrategy SchedulerType SaveStrategy HubStrategy FSDPOption",
        "transformers.training_args": "TrainingArguments OptimizerNames ParallelMode",
        "transformers.trainer_pt_utils": "AcceleratorConfig",
        "accelerate.state": "PartialState",
        "accelerate.utils.dataclasses": "DistributedType DeepSpeedPlugin",
    }.items()
}


def is_allowed(module: str, name: str) -> bool:
    """Whether a checkpoint may hold the global `name` of `module`."""
    names = _ALLOWED.get(module)
    if names is not None:
        return name in names
    return name.isidentifier() and _ENUMS.fullmatch(module) is not None
