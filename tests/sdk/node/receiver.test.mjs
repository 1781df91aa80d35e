/** Deliveries verified by everything the SDK has for it: its receiver, and its wrappers for web frameworks. */

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { once } from "node:events";
import { test } from "node:test";

import { Receiver } from "@upstash/qstash";
import { verifySignatureH3 } from "@upstash/qstash/h3";
import { verifySignature, verifySignatureAppRouter, verifySignatureEdge } from "@upstash/qstash/nextjs";
import { verifySignatureNuxt } from "@upstash/qstash/nuxt";
import { verifySignatureSolidjs } from "@upstash/qstash/solidjs";
import { verifySignatureSvelte } from "@upstash/qstash/svelte";

import { anEndpoint } from "./endpoint.mjs";
import { IDENTITIES, client, deadLetter, historyUntil } from "./relay.mjs";

/** A delivery as it really came, in the words of the receiver. */
async function aDelivery(t, body = "größer") {
  const endpoint = await anEndpoint(t);
  await client.publish({ url: endpoint.url, body });
  const delivery = await endpoint.delivery();
  return { signature: delivery.headers["upstash-signature"], body: delivery.body, url: endpoint.url };
}

test("a delivery is verified by its body, its url and either key", async (t) => {
  const delivery = await aDelivery(t);
  const { currentSigningKey, nextSigningKey } = IDENTITIES[0];
  const wrong = IDENTITIES[1].currentSigningKey;
  assert.equal(await new Receiver().verify(delivery), true);
  assert.equal(await new Receiver({ currentSigningKey, nextSigningKey }).verify(delivery), true);
  // After a rotation the receiver's next key is the one that signs.
  const rotated = new Receiver({ currentSigningKey: wrong, nextSigningKey: currentSigningKey });
  assert.equal(await rotated.verify(delivery), true);
  const strangers = new Receiver({ currentSigningKey: wrong, nextSigningKey: wrong });
  await assert.rejects(() => strangers.verify(delivery), { name: "SignatureError" });
});

test("a delivery that was changed is refused", async (t) => {
  const delivery = await aDelivery(t);
  const [head, claims, mac] = delivery.signature.split(".");
  for (const changed of [
    { body: `${delivery.body}.` },
    { url: `${delivery.url}/other` },
    { signature: `${head}.${claims}.${[...mac].reverse().join("")}` },
    { signature: "none" },
  ]) {
    await assert.rejects(() => new Receiver().verify({ ...delivery, ...changed }), { name: "SignatureError" });
  }
});

test("the region of a delivery is one whose keys the SDK looks for", async (t) => {
  const endpoint = await anEndpoint(t);
  await client.publish({ url: endpoint.url });
  const { headers, body } = await endpoint.delivery();
  const { "upstash-signature": signature, "upstash-region": upstashRegion } = headers;
  const configure = ({ currentSigningKey, nextSigningKey }) => {
    process.env.QSTASH_REGION = "EU_CENTRAL_1";
    process.env.EU_CENTRAL_1_QSTASH_CURRENT_SIGNING_KEY = currentSigningKey;
    process.env.EU_CENTRAL_1_QSTASH_NEXT_SIGNING_KEY = nextSigningKey;
  };
  t.after(() => {
    for (const name of Object.keys(process.env)) if (/REGION|^EU_/.test(name)) delete process.env[name];
  });
  configure(IDENTITIES[1]);
  await assert.rejects(() => new Receiver().verify({ signature, body, upstashRegion }), { name: "SignatureError" });
  configure(IDENTITIES[0]);
  assert.equal(await new Receiver().verify({ signature, body, upstashRegion }), true);
});

/** A handler of the Fetch API behind a real socket; `received` is what came through the verification. */
async function served(t, wrap) {
  const received = [];
  const handler = wrap(async (request) => {
    received.push(await request.text());
    return new Response("handled", { status: 202 });
  });
  const url = await listening(t, async (request, response) => {
    const body = Buffer.concat(await request.toArray());
    const headers = new Headers(Object.entries(request.headers));
    const answer = await handler(new Request(url + request.url, { method: "POST", headers, body })).catch(
      ({ name }) => new Response(name, { status: 401 }),
    );
    response.writeHead(answer.status).end(await answer.text());
  });
  return { url, received };
}

async function listening(t, listener) {
  const server = createServer(listener).listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => (server.closeAllConnections(), server.close()));
  return `http://127.0.0.1:${server.address().port}`;
}

const WRAPPERS = {
  "an edge function of Next.js": verifySignatureEdge,
  "an app route of Next.js": verifySignatureAppRouter,
  "a SvelteKit endpoint": (handler) => {
    const wrapped = verifySignatureSvelte(({ request }) => handler(request));
    return (request) => wrapped({ request });
  },
  "a SolidStart route": (handler) => {
    const wrapped = verifySignatureSolidjs(({ request }) => handler(request));
    return (request) => wrapped({ request });
  },
};

for (const [name, wrap] of Object.entries(WRAPPERS)) {
  test(`${name} takes what the relay delivers and nothing else`, async (t) => {
    const { url, received } = await served(t, wrap);
    const { messageId } = await client.publishJSON({ url, body: { a: "größer" }, retries: 0 });
    const rows = await historyUntil(messageId, "DELIVERED");
    assert.equal(rows.length, 3);
    assert.deepEqual(received, ['{"a":"größer"}']);
    assert.equal((await fetch(url, { method: "POST", body: "unsigned" })).status, 403);
    const headers = { "Upstash-Signature": (await aDelivery(t)).signature };
    assert.equal((await fetch(url, { method: "POST", body: "of another", headers })).status, 401);
    assert.equal(received.length, 1);
  });
}

test("an API route of Next.js takes what the relay delivers and nothing else", async (t) => {
  const received = [];
  const handler = verifySignature(({ body }, response) => {
    received.push(body);
    response.status(202).send("handled");
  });
  const url = await listening(t, async (request, response) => {
    response.status = (code) => Object.assign(response, { statusCode: code });
    response.send = (text) => response.end(text);
    await handler(request, response).catch(({ name }) => response.status(401).end(name));
  });
  const { messageId } = await client.publishJSON({ url, body: { a: "größer" }, retries: 0 });
  await historyUntil(messageId, "DELIVERED");
  assert.deepEqual(received, [{ a: "größer" }]);
  assert.equal((await fetch(url, { method: "POST", body: "unsigned" })).status, 400);
});

// This wrapper compares the signature with the JSON of the body's text, quotes included, wherever that is from. So it
// takes what has no body, from any server.
test("a Nuxt handler takes what the relay delivers without a body", async (t) => {
  assert.equal(verifySignatureNuxt, verifySignatureH3);
  let received = 0;
  const handler = verifySignatureNuxt(() => {
    received += 1;
    return { status: 202 };
  });
  const url = await listening(t, async (request, response) => {
    const { status } = await handler({ method: request.method, node: { req: request, res: response } });
    response.writeHead(status).end();
  });
  const { messageId } = await client.publish({ url, retries: 0 });
  await historyUntil(messageId, "DELIVERED");
  assert.equal(received, 1);
  assert.equal((await fetch(url, { method: "POST" })).status, 403);
  assert.equal(received, 1);
});

test("a wrapped handler with the keys of another account makes a dead letter", async (t) => {
  const { token, ...keys } = IDENTITIES[1];
  const { url, received } = await served(t, (handler) => verifySignatureAppRouter(handler, keys));
  const { messageId } = await client.publish({ url, retries: 0 });
  assert.deepEqual(
    [(await deadLetter(messageId)).responseStatus, (await deadLetter(messageId)).responseBody],
    [401, "SignatureError"],
  );
  assert.deepEqual(received, []);
});
