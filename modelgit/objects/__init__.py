"""Frozen records, typed ids and canonical bytes: everything that is persisted or passed between layers."""

from modelgit.objects.canonical import Record, decode, encode, to_builtins, to_json
from modelgit.objects.commits import Commit, MergeRecipe, Signature, Verdict
from modelgit.objects.dtypes import BLOCK_DTYPES, DTYPES, DType, dtype_named
from modelgit.objects.estimates import FisherEstimate
from modelgit.objects.evaluations import CheckResult, Decision, EvalRecord
from modelgit.objects.ids import (
    BlobId,
    CommitId,
    ContentId,
    EvalRecordId,
    FisherId,
    ManifestId,
    MaskId,
    ObjectId,
    OperationId,
    PatchId,
    TensorId,
    domain,
    id_class,
)
from modelgit.objects.manifest import FileContent, FileEntry, Literal, Manifest, ModelEntry, Segment, TensorRef
from modelgit.objects.masks import Mask, MaskRegion
from modelgit.objects.operations import Operation, Root, View
from modelgit.objects.patches import FileChange, Patch, TensorChange
from modelgit.objects.tensors import (
    LEAF_BYTES,
    LeafHasher,
    TensorEntry,
    TensorSpec,
    blob_id,
    leaf_digest,
    leaf_digests,
    tensor_id,
)

__all__ = [
    "BLOCK_DTYPES",
    "DTYPES",
    "LEAF_BYTES",
    "BlobId",
    "CheckResult",
    "Commit",
    "CommitId",
    "ContentId",
    "DType",
    "Decision",
    "EvalRecord",
    "EvalRecordId",
    "FileChange",
    "FileContent",
    "FileEntry",
    "FisherEstimate",
    "FisherId",
    "LeafHasher",
    "Literal",
    "Manifest",
    "ManifestId",
    "Mask",
    "MaskId",
    "MaskRegion",
    "MergeRecipe",
    "ModelEntry",
    "ObjectId",
    "Operation",
    "OperationId",
    "Patch",
    "PatchId",
    "Record",
    "Root",
    "Segment",
    "Signature",
    "TensorChange",
    "TensorEntry",
    "TensorId",
    "TensorRef",
    "TensorSpec",
    "Verdict",
    "View",
    "blob_id",
    "decode",
    "domain",
    "dtype_named",
    "encode",
    "id_class",
    "leaf_digest",
    "leaf_digests",
    "tensor_id",
    "to_builtins",
    "to_json",
]
