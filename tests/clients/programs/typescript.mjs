// The client of the TypeScript SDK. What every program here does is told in `session.py`, which drives it.

import { createInterface } from "node:readline";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";

function show(step, facts = {}) {
  process.stdout.write(JSON.stringify({ step, ...facts }) + "\n");
}

async function firstLine(stream) {
  for await (const line of createInterface({ input: stream })) return line;
}

const transport = new StdioClientTransport({ ...JSON.parse(await firstLine(process.stdin)), stderr: "inherit" });
let protocolVersion;
transport.setProtocolVersion = (version) => (protocolVersion = version);
const client = new Client({ name: "typescript", version: "1" });
const call = (tool, args = {}, options = {}) => client.callTool({ name: tool, arguments: args }, undefined, options);
const onprogress = ({ progress, total, message }) => show("progress", { done: progress, total, text: message });

await client.connect(transport);
show("initialized", {
  protocolVersion,
  serverInfo: client.getServerVersion(),
  instructions: client.getInstructions(),
  capabilities: client.getServerCapabilities(),
});
show("listed", { tools: (await client.listTools()).tools });

let answered = false;
const waiting = call("wait_for_message", { timeout_secs: 30 }, { onprogress }).finally(() => (answered = true));
show("pinged", { result: await client.ping() });
show("sent", { result: await call("send_message_to_user", { message: "Hello, user. 你好" }) });
show("bad_argument", { result: await call("inbox_pop", { activity_id: "not an id" }) });
try {
  await call("no_such_tool");
} catch (error) {
  show("unknown_tool", { code: error.code, message: error.message });
}
show("waited_meanwhile", { done: answered });
const first = await waiting;
show("first", { result: first });
show("peeked", { result: await call("inbox_peek") });
const { activity_id } = first.structuredContent.message;
show("replied", { result: await call("reply", { activity_id, message: "Heard." }) });

const abort = new AbortController();
const given_up = call("wait_for_message", { timeout_secs: 50 }, { signal: abort.signal }).catch(() => {});
await client.ping();
abort.abort("the test changed its mind");
await given_up;
show("cancelled", { result: await call("inbox_peek") });
const second = await call("wait_for_message", { timeout_secs: 20 });
show("second", { result: second });
await call("inbox_pop", { activity_id: second.structuredContent.message.activity_id });
show("status", { result: await call("runtime_status") });
await client.close();
show("closed");
process.stdin.destroy();
