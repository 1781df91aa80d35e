/** Destinations that the SDK composes for LLM and e-mail providers, and the hosted models a relay has none of. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { anthropic, custom, openai, resend, upstash } from "@upstash/qstash";

import { anEndpoint } from "./endpoint.mjs";
import { client, historyUntil, refused } from "./relay.mjs";

const CALLBACK = "https://example.com/callback";
const PROMPT = { model: "m", messages: [{ role: "user", content: "größer?" }] };
const JSON_TYPE = { "Content-Type": ["application/json"] };

test("a provider of one's own is called with its token, and its answer told to the callback", async (t) => {
  const [provider, listener] = [await anEndpoint(t), await anEndpoint(t)];
  provider.answers({ body: '{"choices":[]}' });
  const api = { name: "llm", provider: custom({ baseUrl: provider.origin, token: "theirs" }) };
  await client.publishJSON({ api, body: PROMPT, callback: listener.url });
  await client.batchJSON([{ api, body: PROMPT, callback: listener.url }]);
  for (const number of [0, 1]) {
    const { method, target, headers, body } = await provider.delivery(number);
    assert.deepEqual([method, target], ["POST", "/v1/chat/completions"]);
    assert.deepEqual([headers.authorization, headers["content-type"]], ["Bearer theirs", "application/json"]);
    assert.deepEqual(JSON.parse(body), PROMPT);
    const told = JSON.parse((await listener.delivery(number)).body);
    assert.equal(atob(told.body), '{"choices":[]}');
  }
});

for (const [header, value, delayMs] of [
  ["x-ratelimit-reset-requests", "6m0s", 360_000],
  ["x-ratelimit-reset-tokens", "1m30.5s", 90_500],
  ["retry-after", "20", 20_000],
]) {
  test(`a provider that says ${header}: ${value} is called again then`, async (t) => {
    const provider = await anEndpoint(t);
    provider.answers({ status: 429, body: "slow down", headers: { [header]: value } });
    const { messageId } = await client.publishJSON({
      api: { name: "llm", provider: custom({ baseUrl: provider.origin, token: "theirs" }) },
      body: PROMPT,
      callback: `${provider.origin}/callback`,
      headers: { "Upstash-Callback-Retries": "0" },
    });
    const retry = (await historyUntil(messageId, "RETRY")).at(-1);
    assert.equal(retry.nextDeliveryTime - retry.time, delayMs);
    await client.messages.cancel(messageId);
  });
}

const email = { from: "a@example.com", to: ["b@example.com"], subject: "s", text: "t" };
for (const [name, request, url, header] of [
  [
    "OpenAI",
    { api: { name: "llm", provider: openai({ token: "sk", organization: "org" }) }, body: PROMPT, callback: CALLBACK },
    "https://api.openai.com/v1/chat/completions",
    { ...JSON_TYPE, Authorization: ["Bearer sk"], "Openai-Organization": ["org"] },
  ],
  [
    "Anthropic",
    { api: { name: "llm", provider: anthropic({ token: "sk" }) }, body: PROMPT, callback: CALLBACK },
    "https://api.anthropic.com/v1/messages",
    { ...JSON_TYPE, "Anthropic-Version": ["2023-06-01"], "X-Api-Key": ["sk"] },
  ],
  [
    "OpenAI through Helicone",
    {
      api: {
        name: "llm",
        provider: openai({ token: "sk" }),
        analytics: { name: "helicone", token: "hk" },
      },
      body: PROMPT,
      callback: CALLBACK,
    },
    "https://gateway.helicone.ai/v1/chat/completions",
    {
      ...JSON_TYPE,
      Authorization: ["Bearer sk"],
      "Helicone-Auth": ["Bearer hk"],
      "Helicone-Target-Url": ["https://api.openai.com"],
    },
  ],
  [
    "Resend",
    { api: { name: "email", provider: resend({ token: "re" }) }, body: email },
    "https://api.resend.com/emails",
    { ...JSON_TYPE, Authorization: ["Bearer re"] },
  ],
  [
    "Resend in batches",
    { api: { name: "email", provider: resend({ token: "re", batch: true }) }, body: [email] },
    "https://api.resend.com/emails/batch",
    { ...JSON_TYPE, Authorization: ["Bearer re"] },
  ],
]) {
  test(`a message to ${name} is the request that provider expects`, async () => {
    const { messageId } = await client.publishJSON({ ...request, delay: "1h" });
    const [item] = await client.batchJSON([{ ...request, delay: "1h" }]); // writes into its items
    for (const id of [messageId, item.messageId]) {
      const message = await client.messages.get(id);
      assert.deepEqual([message.url, message.method, message.header], [url, "POST", header]);
      assert.deepEqual(JSON.parse(message.body), request.body);
    }
    assert.deepEqual(await client.messages.cancel([messageId, item.messageId]), { cancelled: 2 });
  });
}

test("the hosted models are refused by name, wherever they are asked for", async () => {
  const hosted = { api: { name: "llm", provider: upstash() }, body: PROMPT, callback: CALLBACK };
  await refused(400, () => client.publishJSON({ ...hosted }), "api/llm", "provider");
  await refused(400, () => client.batchJSON([{ ...hosted }]), "api/llm", "provider");
  await refused(400, () => client.queue({ queueName: "q" }).enqueueJSON({ ...hosted }), "api/llm", "provider");
  const schedule = () => client.schedules.create({ destination: "api/llm", cron: "@yearly" });
  await refused(400, schedule, "api/llm", "provider");
  await refused(400, () => client.chat().create({ provider: upstash(), ...PROMPT }), "/llm", "provider");
  await refused(400, () => client.chat().prompt({ provider: upstash(), system: "s", user: "u" }), "/llm", "provider");
  const stream = await client.chat().create({ provider: upstash(), stream: true, ...PROMPT });
  await refused(400, () => stream.next(), "/llm", "provider");
});
