"""The collaborators of one plugin in one object, `app.state.parts`."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from molecule_runtime.clock import Clock
from molecule_runtime.memory_plugin.config import PluginConfig
from molecule_runtime.memory_plugin.memories import Memories
from molecule_runtime.memory_plugin.namespaces import Namespaces
from molecule_runtime.memory_plugin.store.tables import SCHEMA, VERSION_TABLE, namespaces
from molecule_runtime.memory_plugin.sweeper import Sweeper
from molecule_runtime.reference_platform.store.engine import Store, StoreError
from molecule_runtime.reference_platform.store.schema import Schema


@dataclass(frozen=True)
class Parts:
    """What routes work with; `build_parts` wires it."""

    config: PluginConfig
    store: Store
    namespaces: Namespaces
    memories: Memories
    sweeper: Sweeper

    async def is_healthy(self) -> bool:
        """Whether the database answers."""
        try:
            await self.store.read(lambda connection: connection.execute(select(namespaces.c.no).limit(1)).all())
        except StoreError:
            return False
        return True


def build_parts(config: PluginConfig, clock: Clock) -> Parts:
    """Wire a plugin. Nothing is opened yet: the lifespan of the app does that."""
    schema = SCHEMA if config.migrations is None else Schema(config.migrations, VERSION_TABLE)
    store = Store(config.database_url, schema)
    memories = Memories(store, clock)
    return Parts(
        config=config,
        store=store,
        namespaces=Namespaces(store, clock),
        memories=memories,
        sweeper=Sweeper(memories, clock, interval_s=config.sweep_interval_s),
    )
