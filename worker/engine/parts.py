"""The parts of the local engine that need torch. Importing this module takes seconds."""

from worker.engine.intake import Intake, Limits
from worker.engine.model_runner import ModelRunner
from worker.engine.options import EngineOptions
from worker.engine.protocol import EngineInfo, Progress
from worker.engine.tokenizer import Tokenizer
from worker.model.checkpoint import Checkpoint
from worker.model.loading import load_model


def read_parts(
    checkpoint: Checkpoint, options: EngineOptions, progress: Progress
) -> tuple[EngineInfo, Intake, ModelRunner]:
    """Load the model and build around it; raises ``StartupFailed``."""
    model = load_model(checkpoint, options.device, options.cache_dir / "models", progress)
    info = EngineInfo(
        model=model.name,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        context_len=model.context_len,
        capacity=options.capacity,
    )
    vocab_len = model.network.get_input_embeddings().num_embeddings
    limits = Limits(model.context_len, vocab_len, model.eos_ids)
    return info, Intake(Tokenizer(model.tokenizer), limits), ModelRunner(model, options.threads)
