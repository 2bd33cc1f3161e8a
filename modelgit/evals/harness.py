"""Tasks of the lm-evaluation-harness on a model directory: what runs inside of the test's own process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelgit.errors import CheckFailed, MissingExtraError, UsageError

if TYPE_CHECKING:
    from modelgit.evals.child import HarnessRequest

__all__ = ["run_harness"]


def run_harness(request: HarnessRequest) -> dict[str, Any]:
    """The outcome: each metric as TASK.METRIC (and METRIC, of a single task), each document's as TASK/NUMBER.

    The model is loaded by transformers, without code of its own, and scored one request at a time, so that padding
    plays no part.  Raises MissingExtraError without the package, UsageError for tasks that it does not know,
    or whose data are on a hub, CheckFailed for one that gives no metrics.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtraError(
            f"tests of kind `lm-eval` need the lm-evaluation-harness ({error})",
            hint="`pip install 'modelgit[lm-eval]'`",
        ) from error
    # The package's own tasks are thousands of files, which take a minute to list.
    manager = TaskManager(include_path=request.include_path, include_defaults=request.include_path is None)
    if request.include_path is not None and not set(request.tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=request.include_path)
    unknown = sorted(set(request.tasks) - set(manager.all_tasks))
    if unknown:
        raise UsageError(
            f"the lm-evaluation-harness has no task `{unknown[0]}`",
            hint="write its YAML into a directory of the repository, and name that as `include_path`",
        )
    model = HFLM(
        pretrained=request.model,
        device=request.device,
        dtype=request.dtype,
        batch_size=1,
        trust_remote_code=False,
    )
    documents = request.documents
    chosen = {} if documents is None else {"samples": {task: list(numbers) for task, numbers in documents.items()}}
    try:
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=list(request.tasks),
            task_manager=manager,
            limit=request.limit,
            **chosen,
            log_samples=True,
            bootstrap_iters=0,
            random_seed=request.seed,
            numpy_random_seed=request.seed,
            torch_random_seed=request.seed,
            fewshot_random_seed=request.seed,
        )
    except ConnectionError as error:
        raise UsageError(
            f"data of the tasks {', '.join(request.tasks)} are on a hub, and tests run without a network: {error}",
            hint="name a file of the repository in the task's YAML, `dataset_path: json` with `data_files`",
        ) from error
    return _outcome(found or {}, request)


def _outcome(found: dict[str, Any], request: HarnessRequest) -> dict[str, Any]:
    metrics: dict[str, float] = {}
    for task, values in found.get("results", {}).items():
        for key, value in values.items():
            name, comma, label = key.partition(",")
            if not comma or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            full = f"{task}.{name}" if label == "none" else f"{task}.{name}.{label}"
            metrics[full] = float(value)
            if len(request.tasks) == 1 and task == request.tasks[0]:
                metrics.setdefault(name, float(value))
    examples = []
    for task, samples in found.get("samples", {}).items():
        seen = set()
        for sample in samples:
            number, score = sample["doc_id"], sample.get(request.metric)
            if number in seen:  # a second filter over the same answers
                continue
            seen.add(number)
            if isinstance(score, bool | int | float):
                examples.append({"id": f"{task}/{number}", "score": float(score)})
    if not metrics:
        raise CheckFailed(f"the tasks {', '.join(request.tasks)} gave no metrics")
    return {"metrics": metrics, "examples": examples}
