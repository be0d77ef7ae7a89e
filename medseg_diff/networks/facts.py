"""How a network is told a label and covariates: added to the time's embedding, as channels, or as tokens to attend to.

Channels and tokens: Pinaya et al., Brain Imaging Generation with Latent Diffusion Models, 2022, arXiv 2209.07162. Of each
way there is a learned null, which stands where `keep` is False or nothing is known, as it is after `Condition.null`.
"""

import torch
from torch import Tensor, nn

from medseg_diff.diffusion.condition import Condition
from medseg_diff.networks.blocks import each_row, known_or_null


class KnownFacts(nn.Module):
    """Label and covariates added to the time embedding; learned null embeddings where they are not known."""

    def __init__(self, classes: int, covariates: int, embedded: int) -> None:
        super().__init__()
        self.label = nn.Embedding(classes + 1, embedded) if classes else None  # the last row is the null embedding
        self.covariates = nn.Linear(covariates, embedded) if covariates else None
        self.null_covariates = nn.Parameter(torch.zeros(embedded)) if covariates else None

    def forward(self, embedding: Tensor, condition: Condition) -> Tensor:
        """[B, D] → [B, D]."""
        if self.label is not None:
            null = self.label.num_embeddings - 1
            label = condition.label
            if label is None:
                label = torch.full((len(embedding),), null, device=embedding.device)
            elif condition.keep is not None:
                label = torch.where(condition.keep, label, null)
            embedding = embedding + self.label(label)
        if self.covariates is not None and self.null_covariates is not None:
            if condition.covariates is None:
                return embedding + self.null_covariates
            known = each_row(self.covariates, condition.covariates.to(embedding.dtype))
            embedding = embedding + known_or_null(known, condition.keep, self.null_covariates)
        return embedding


class CovariateChannels(nn.Module):
    """Each covariate as a channel of x that is the same everywhere; learned null values where they are not known."""

    def __init__(self, covariates: int) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.zeros(1, covariates))

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        """[B, C, *S] → [B, C + K, *S]."""
        values = self.null.to(x.dtype)
        if condition.covariates is not None:
            values = known_or_null(condition.covariates.to(x.dtype), condition.keep, values)
        channels = values.view(*values.shape, *(1,) * (x.ndim - 2)).expand(len(x), -1, *x.shape[2:])
        return torch.cat([x, channels], dim=1)


class CovariateTokens(nn.Module):
    """Each covariate as a token: its value times a learned direction, at a learned place; learned null tokens where they are
    not known."""

    def __init__(self, covariates: int, length: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.randn(covariates, length))
        self.place = nn.Parameter(torch.randn(covariates, length))
        self.null = nn.Parameter(torch.zeros(1, covariates, length))

    def known(self, covariates: Tensor) -> Tensor:
        """[B, K] → [B, K, D], of values that are known."""
        return torch.addcmul(self.place, covariates.to(self.place.dtype)[..., None], self.direction)

    def forward(self, batch: int, condition: Condition) -> Tensor:
        """The tokens [B, K, D] of a condition whose `context` they are, if they are known."""
        if condition.context is None:
            return self.null.expand(batch, -1, -1)
        return known_or_null(condition.context, condition.keep, self.null)
