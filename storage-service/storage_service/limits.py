"""How far searches and lists go."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class SearchLimits(BaseSettings):
    """Limits of searches and lists; storage-service's settings include them."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    max_filter_ids: int = Field(
        20_000,
        ge=0,
        le=1_000_000,
        validation_alias="PIXELGATE_STORAGE_MAX_FILTER_IDS",
        description="A filter that the vector index cannot answer is given to it as at most so many ids.",
    )
    candidates: int = Field(
        200,
        ge=10,
        le=10_000,
        validation_alias="PIXELGATE_STORAGE_CANDIDATES",
        description="How deep each ranking goes when several are fused; pages end there.",
    )
    facet_values: int = Field(
        100,
        ge=1,
        le=10_000,
        validation_alias="PIXELGATE_STORAGE_FACET_VALUES",
        description="The most frequent values that a facet names.",
    )
    max_words: int = Field(
        64, ge=1, le=500, validation_alias="PIXELGATE_STORAGE_MAX_WORDS", description="Words in one full-text query."
    )
    max_ranked: int = Field(
        10_000,
        ge=100,
        le=1_000_000,
        validation_alias="PIXELGATE_STORAGE_MAX_RANKED",
        description="Of the pictures that match a full-text query, so many are ranked, the newest ones.",
    )
