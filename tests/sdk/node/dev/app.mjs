/**
 * An application in development that is told nothing but QSTASH_DEV: it publishes to itself, verifies what arrives, and
 * prints what it has seen as one line of JSON.
 */

import { once } from "node:events";
import { createServer } from "node:http";

import { Client, Receiver, startDevServer } from "@upstash/qstash";
import { registerQStashDev, verifySignatureAppRouter } from "@upstash/qstash/nextjs";

await startDevServer();
await registerQStashDev();
const client = new Client({ retry: false });
const receiver = new Receiver();
const route = verifySignatureAppRouter(async (request) => Response.json(await request.json()));

const server = createServer().listen(0, "127.0.0.1");
await once(server, "listening");
const url = `http://127.0.0.1:${server.address().port}/job`;
const arrival = once(server, "request", { signal: AbortSignal.timeout(15_000) });
const { messageId } = await client.publishJSON({ url, body: { hello: "größer" } });

const [request, response] = await arrival;
const body = Buffer.concat(await request.toArray()).toString();
const headers = new Headers(Object.entries(request.headers));
const signature = headers.get("upstash-signature");
const isVerified = await receiver.verify({ signature, body, url });
const answer = await route(new Request(url, { method: "POST", headers, body }));
response.writeHead(answer.status).end();
await once(response, "close");
server.closeAllConnections();
server.close();
const isOurs = headers.get("upstash-message-id") === messageId;
console.log(JSON.stringify({ relay: client.http.baseUrl, isOurs, isVerified, answered: await answer.json() }));
