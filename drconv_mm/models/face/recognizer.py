"""``FaceRecognizer``: backbone, embedding neck and head as one mmengine model."""

from __future__ import annotations

from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...registration import register
from .arcface_head import keep_shards_local
from .preprocessor import FaceDataPreprocessor


@register
class FaceRecognizer(BaseModel):
    """Face images to embeddings, and to losses over identities.

    A checkpoint of the bare network, without ``backbone.`` and ``neck.`` before its keys, loads as it is. So published
    weights of arcface_torch are read by ``load_from``, ``tools/test.py CONFIG backbone.pth`` or
    ``init_cfg=dict(type='Pretrained', checkpoint='backbone.pth')`` of this model, with
    ``backbone=dict(type='drconv_mm.IResNet', depth=50)`` and
    ``neck=dict(type='drconv_mm.LinearEmbedding', in_channels=512, embedding_size=512, map_size=7)``.

    A batch of one image cannot train, since the neck's batch norm needs two: it is an error that says so. It can be
    predicted.

    Args:
        backbone: Config of the backbone.
        neck: Config of what makes ``[N, embedding_size]`` of its output, `LinearEmbedding` for instance.
        head: Config of the head, whose ``loss(embeddings, label)`` gives a dict; None for a model that only predicts.
        data_preprocessor: Config of the preprocessor; None for `FaceDataPreprocessor`.
        flip_test: Whether ``predict`` sums the embeddings of an image and its mirror image.
        init_cfg: mmengine's initialisation.

    Raises:
        ValueError: ``head.in_channels`` is not ``neck.embedding_size``.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        flip_test: bool = True,
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(data_preprocessor or FaceDataPreprocessor(), init_cfg)
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(neck)
        self.head = None if head is None else MODELS.build(head)
        self.flip_test = flip_test
        if self.head is not None and self.head.in_channels != self.neck.embedding_size:
            raise ValueError(
                f"head.in_channels={self.head.in_channels} must equal neck.embedding_size={self.neck.embedding_size}; "
                "set both to the size of the embedding"
            )
        keep_shards_local(self)

    def forward(
        self, inputs: Tensor, label: Tensor | None = None, mode: str = "tensor", **meta
    ) -> Tensor | dict[str, Tensor] | list[dict]:
        """Runs in one of mmengine's modes.

        Args:
            inputs: ``[N, 3, H, W]``, float, normalised.
            label: ``[N]``, int64: the identities, for ``'loss'``.
            mode: ``'loss'``, ``'predict'`` or ``'tensor'``.
            **meta: More of the batch, such as ``index`` ``[N]``.

        Returns:
            ``'loss'``: the head's dict of losses. ``'tensor'``: embeddings ``[N, D]`` as the neck gives them.
            ``'predict'``: for each image ``dict(embedding=float32 [D] of norm 1, ...)`` with its part of ``meta``.

        Raises:
            ValueError: An unknown mode; in ``'loss'`` no head, no label or a batch of one image; in ``'predict'`` an
                embedding without direction.
        """
        if mode == "tensor":
            return self.embed(inputs)
        if mode == "loss":
            return self.loss(inputs, label)
        if mode == "predict":
            return self.predict(inputs, **meta)
        raise ValueError(f"mode={mode!r} is not known; choose 'loss', 'predict' or 'tensor'")

    def embed(self, inputs: Tensor) -> Tensor:
        """``[N, 3, H, W]`` to embeddings ``[N, D]`` of any norm."""
        return self.neck(self.backbone(inputs))

    def loss(self, inputs: Tensor, label: Tensor | None) -> dict[str, Tensor]:
        """The head's losses; see `forward`."""
        if self.head is None:
            raise ValueError("a loss needs a head, and the model was built with head=None; give it an ArcFaceHead")
        if label is None:
            raise ValueError("a loss needs the entry `label` [N] in the batch; the data set gives it for training")
        if len(inputs) == 1 and any(isinstance(m, nn.BatchNorm1d) and m.training for m in self.neck.modules()):
            raise ValueError(
                "a batch of one image cannot train: the batch norm of the embedding needs at least two; enlarge "
                "train_dataloader.batch_size, and set train_dataloader.drop_last=True where one image is left over"
            )
        return self.head.loss(self.embed(inputs), label)

    def predict(self, inputs: Tensor, **meta) -> list[dict]:
        """The normalised embeddings; see `forward`."""
        embeddings = self.embed(inputs).float()
        if self.flip_test:
            embeddings = embeddings + self.embed(inputs.flip(3)).float()
        norms = embeddings.norm(dim=1)
        without_direction = ~(norms.isfinite() & (norms > 0))
        meta = {
            key: value.tolist() if isinstance(value, Tensor) and value.dim() == 1 else value
            for key, value in meta.items()
        }
        if without_direction.any():
            position = int(without_direction.nonzero()[0])
            index = meta["index"][position] if "index" in meta else position
            raise ValueError(
                f"the embedding of image index={index} has norm {norms[position]:.3g} and no direction; look at the "
                f"image ({int(without_direction.sum())} of {len(norms)} in this batch), and whether the training "
                "diverged or the checkpoint is one of this network"
            )
        normalised = embeddings / norms[:, None]
        return [
            dict(embedding=embedding, **{key: value[i] for key, value in meta.items()})
            for i, embedding in enumerate(normalised)
        ]

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for part in ("backbone", "neck"):  # the bare network's keys move to the part that has such a child
            children = dict(self.get_submodule(part).named_children())
            for key in list(state_dict):
                name = key[len(prefix) :]
                if key.startswith(prefix) and name.split(".")[0] in children:
                    state_dict.setdefault(f"{prefix}{part}.{name}", state_dict.pop(key))
        super()._load_from_state_dict(state_dict, prefix, *args)
