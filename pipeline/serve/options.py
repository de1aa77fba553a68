"""The recipe's `serve:` section: where the service listens, who may use it and how much it takes on."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ServeOptions(BaseModel):
    """How `gonggam serve` runs; an ordinary run does not read this."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="address to listen on; beyond this machine only with accounts")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0: any that is free")
    workers: int = Field(1, ge=1, le=64, description="processes; each loads the model unless a model server is used")
    accounts: bool = Field(False, description="whether people log in; without, everybody on this machine is one")
    page: bool = Field(True, description="whether to serve the page for people, or only the API")
    database: str | None = Field(
        None, description="SQLAlchemy URL of the database; null: SQLite in the run folder (service/gonggam.db)"
    )
    key_file: str | None = Field(
        None, description="file of the keys that texts in the database are sealed with; null: those in GONGGAM_KEY"
    )
    session_days: int = Field(14, ge=1, le=365, description="how long a log-in holds")
    parallel: int = Field(16, ge=1, le=1024, description="replies that are worked on at once, a process")
    queue: int = Field(
        64, ge=0, description="requests that may wait for their turn, shared out among the workers; beyond: 429"
    )
    per_user: int = Field(
        4, ge=1, description="of these, requests of one user; shared out likewise, at least one a worker"
    )
    per_minute: int = Field(
        60,
        ge=1,
        le=10**6,
        description="messages an account may send a minute in the long run, and at once; over all workers; beyond: 429",
    )
    max_body_kb: int = Field(1024, ge=1, description="largest request body, in KiB")
    origins: tuple[str, ...] = Field(
        (), description="other web pages' origins that may use the API, such as https://a.b"
    )
    hosts: tuple[str, ...] = Field(
        (), description="names this service is reached by; empty: on this machine localhost, elsewhere any"
    )
    proxies: tuple[str, ...] = Field(
        (), description="addresses or networks of reverse proxies whose X-Forwarded-For and -Proto are believed"
    )
    metrics: bool = Field(True, description="whether /metrics tells Prometheus what goes on (numbers only, no text)")
    shutdown_s: int = Field(60, ge=1, description="how long running replies may take to finish at shutdown, in seconds")
