"""What Alembic runs for every command: the connection comes from `pipeline.serve.store.migrate`."""

from alembic import context

from pipeline.serve.store.models import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=connection.dialect.name == "sqlite",
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
