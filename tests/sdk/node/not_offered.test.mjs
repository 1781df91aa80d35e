/** What the SDK knows and this relay does not have yet is refused by its name, never passed over in silence. */

import { test } from "node:test";

import { client, refused } from "./relay.mjs";

const url = "https://example.com";
const queue = client.queue({ queueName: "q" });
const LATER = "not offered by this version";

for (const [name, call] of [
  ["/v2/workflows", () => client.workflow.cancel("wfr_unknown")],
  ["/v2/queues", () => queue.upsert({ parallelism: 1 })],
  ["/v2/queues", () => queue.get()],
  ["/v2/queues", () => queue.list()],
  ["/v2/queues", () => queue.delete()],
  ["/v2/queues", () => queue.pause()],
  ["/v2/queues", () => queue.resume()],
  ["/v2/enqueue", () => queue.enqueue({ url })],
  ["/v2/enqueue", () => queue.enqueueJSON({ url, body: {} })],
  ["queue", () => client.batch([{ url, queueName: "q" }])],
  ["/v2/flowControl", () => client.flowControl.get("k")],
  ["/v2/flowControl", () => client.flowControl.pause("k")],
  ["/v2/flowControl", () => client.flowControl.resume("k")],
  ["/v2/flowControl", () => client.flowControl.pin("k", { parallelism: 1 })],
  ["/v2/flowControl", () => client.flowControl.unpin("k", { parallelism: true })],
  ["/v2/flowControl", () => client.flowControl.resetRate("k")],
  ["/v2/globalParallelism", () => client.flowControl.getGlobalParallelism()],
  ["Upstash-Flow-Control-Key", () => client.publish({ url, flowControl: { key: "k", rate: 1 } })],
]) {
  test(`${call.toString().slice(6)} is refused by name`, () => refused(400, call, name, LATER));
}
