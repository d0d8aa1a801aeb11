"""All collaborators of one platform in one object, `app.state.parts`: no globals, so a process may hold several."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from starlette.requests import HTTPConnection

from molecule_runtime.clock import Clock
from molecule_runtime.reference_platform.auth import Auth
from molecule_runtime.reference_platform.bus import EventBus
from molecule_runtime.reference_platform.config import PlatformConfig
from molecule_runtime.reference_platform.memory_sidecar import MemorySidecar
from molecule_runtime.reference_platform.metrics import Metrics
from molecule_runtime.reference_platform.rate_limit import FixedWindow
from molecule_runtime.reference_platform.relay import Relay
from molecule_runtime.reference_platform.services.activity import ActivityLog
from molecule_runtime.reference_platform.services.chat_history import ChatHistories
from molecule_runtime.reference_platform.services.delegation_dispatch import DelegationDispatcher
from molecule_runtime.reference_platform.services.delegation_records import DelegationRecords
from molecule_runtime.reference_platform.services.delegations import Delegations
from molecule_runtime.reference_platform.services.discovery import Discovery
from molecule_runtime.reference_platform.services.forwarding import Forwarder
from molecule_runtime.reference_platform.services.heartbeats import Heartbeats
from molecule_runtime.reference_platform.services.memories import Memories
from molecule_runtime.reference_platform.services.memory_plugin import MemoryPlugin
from molecule_runtime.reference_platform.services.messages import AgentMessageWriter, Inbound
from molecule_runtime.reference_platform.services.peers import Peers
from molecule_runtime.reference_platform.services.pending_uploads import PendingUploads, UploadTables
from molecule_runtime.reference_platform.services.plugin_memories import PluginMemories
from molecule_runtime.reference_platform.services.presence import Presence
from molecule_runtime.reference_platform.services.push import PushAgents
from molecule_runtime.reference_platform.services.tokens import Tokens
from molecule_runtime.reference_platform.services.upload_forwarding import UploadForwarder
from molecule_runtime.reference_platform.services.uploads import ChatUploads
from molecule_runtime.reference_platform.services.workspace_edits import WorkspaceEdits
from molecule_runtime.reference_platform.services.workspaces import Workspaces
from molecule_runtime.reference_platform.store.engine import Store
from molecule_runtime.reference_platform.sweeper import DelegationSweeper, Sweeper, UploadSweeper

MCP_LIMIT = 120
"""Requests of the MCP bridge a minute by one bearer, where requests are limited at all (contract 1.7)."""


@dataclass(frozen=True)
class Parts:
    """What routes work with; `build_parts` wires it."""

    config: PlatformConfig
    clock: Clock
    store: Store
    bus: EventBus
    relay: Relay
    metrics: Metrics
    tokens: Tokens
    auth: Auth
    workspaces: Workspaces
    workspace_edits: WorkspaceEdits
    presence: Presence
    heartbeats: Heartbeats
    peers: Peers
    discovery: Discovery
    activity: ActivityLog
    inbound: Inbound
    delegations: Delegations
    dispatcher: DelegationDispatcher
    agent_messages: AgentMessageWriter
    chat_histories: ChatHistories
    pending_uploads: PendingUploads
    uploads: ChatUploads
    upload_forwarder: UploadForwarder
    memory_plugin: MemoryPlugin
    memory_sidecar: MemorySidecar
    plugin_memories: PluginMemories
    memories: Memories
    mcp_window: FixedWindow | None
    sweeper: Sweeper
    upload_sweeper: UploadSweeper
    delegation_sweeper: DelegationSweeper


def build_parts(config: PlatformConfig, clock: Clock) -> Parts:
    """Wire a platform. Nothing is opened yet: the lifespan of the app does that."""
    store = Store(config.database_url)
    bus = EventBus(clock)
    metrics = Metrics()
    relay = Relay(store, bus, term_s=4 * config.sweep_interval_s)
    bus.pass_on_to(relay.pass_on)
    tokens = Tokens(store, clock)
    peers = Peers(store)
    activity = ActivityLog(store, bus, clock)
    records = DelegationRecords(config.delegation_ledger_write, config.delegation_result_inbox_push)
    agents = PushAgents(development=config.development)
    forwarder = Forwarder(store, bus, activity, agents, clock)
    dispatcher = DelegationDispatcher(store, bus, records, forwarder, clock)
    delegations = Delegations(store, bus, records, dispatcher, clock)
    pending_uploads = UploadTables(store, clock, ttl=timedelta(seconds=config.pending_uploads_ttl_s))
    memory_plugin = MemoryPlugin(config.memory_plugin_url, clock, timeout_s=config.memory_plugin_timeout_s)
    plugin_memories = PluginMemories(store, memory_plugin, clock)
    presence = Presence(store, bus, clock, stale_after_s=config.stale_after_s)
    return Parts(
        config=config,
        clock=clock,
        store=store,
        bus=bus,
        relay=relay,
        metrics=metrics,
        tokens=tokens,
        auth=Auth(config, tokens),
        workspaces=Workspaces(store, bus, clock),
        workspace_edits=WorkspaceEdits(store, clock),
        presence=presence,
        heartbeats=Heartbeats(store, bus, tokens, clock),
        peers=peers,
        discovery=Discovery(store, development=config.development),
        activity=activity,
        inbound=Inbound(store, bus, records, forwarder, clock),
        delegations=delegations,
        dispatcher=dispatcher,
        agent_messages=AgentMessageWriter(store, bus, clock),
        chat_histories=ChatHistories(store),
        pending_uploads=pending_uploads,
        uploads=ChatUploads(store, pending_uploads, activity, clock),
        upload_forwarder=UploadForwarder(store, agents),
        memory_plugin=memory_plugin,
        memory_sidecar=MemorySidecar(config.memory_sidecar, memory_plugin, clock),
        plugin_memories=plugin_memories,
        memories=Memories(store, plugin_memories, clock),
        mcp_window=FixedWindow(MCP_LIMIT, clock) if config.rate_limit else None,
        sweeper=Sweeper(
            presence,
            tokens,
            relay,
            activity,
            delegations,
            clock,
            interval_s=config.sweep_interval_s,
            retention=timedelta(days=config.activity_retention_days),
            retention_interval_s=config.activity_cleanup_interval_hours * 3600,
        ),
        upload_sweeper=UploadSweeper(
            pending_uploads,
            metrics,
            clock,
            interval_s=config.pending_uploads_sweep_s,
            acked_for=timedelta(seconds=config.pending_uploads_ack_retention_s),
        ),
        delegation_sweeper=DelegationSweeper(
            delegations,
            dispatcher,
            clock,
            interval_s=config.delegation_sweeper_interval_s,
            stuck_after=timedelta(seconds=config.delegation_stuck_threshold_s),
        ),
    )


def parts_of(connection: HTTPConnection) -> Parts:
    """The parts of the app that serves this request or socket."""
    parts: Parts = connection.app.state.parts
    return parts
