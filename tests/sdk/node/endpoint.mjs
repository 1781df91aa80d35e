/** A real HTTP server to deliver to, which verifies every delivery with the SDK's own receiver. */

import assert from "node:assert/strict";
import { once, EventEmitter } from "node:events";
import { createServer } from "node:http";

import { Receiver } from "@upstash/qstash";

const PATIENCE_MS = 15_000;

/**
 * An endpoint for the length of one test. It answers 200 unless told otherwise and keeps what it was sent; a delivery
 * that the receiver refuses fails the test at its end. Without a receiver of its own it takes the environment's keys.
 */
export async function anEndpoint(t, { receiver = new Receiver() } = {}) {
  const endpoint = new Endpoint(receiver);
  const server = createServer((request, response) => endpoint.handle(request, response));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  endpoint.origin = `http://127.0.0.1:${server.address().port}`;
  t.after(() => {
    server.closeAllConnections();
    server.close();
    assert.deepEqual(endpoint.problems, []);
  });
  return endpoint;
}

class Endpoint {
  deliveries = [];
  problems = [];
  origin = "";
  /** What its messages are published to, where that is not what a request to it looks like. */
  publishedAs;
  #answers = [{}];
  #arrived = new EventEmitter();
  #receiver;

  constructor(receiver) {
    this.#receiver = receiver;
  }

  get url() {
    return `${this.origin}/hook`;
  }

  /** Say these one after the other, and the last one from then on: `{ status, body, headers, after }`. */
  answers(...answers) {
    this.#answers = answers;
  }

  /** The delivery of this number, counted from 0, as soon as it is there. */
  async delivery(number = 0, patienceMs = PATIENCE_MS) {
    const signal = AbortSignal.timeout(patienceMs);
    while (this.deliveries.length <= number) await once(this.#arrived, "delivery", { signal });
    return this.deliveries[number];
  }

  /** The bodies that came, in the order of the alphabet: several messages may arrive in any. */
  get bodies() {
    return this.deliveries.map(({ body }) => body).sort();
  }

  async handle(request, response) {
    const at = Date.now();
    const body = Buffer.concat(await request.toArray()).toString();
    const { method, url: target, headers } = request;
    const answer = this.#answers.length > 1 ? this.#answers.shift() : this.#answers[0];
    try {
      await this.#receiver.verify({
        signature: headers["upstash-signature"],
        body,
        url: this.publishedAs ?? this.origin + target,
        upstashRegion: headers["upstash-region"],
      });
    } catch (problem) {
      this.problems.push(`${method} ${target}: ${problem}`);
    }
    this.deliveries.push({ method, target, headers, body, at });
    this.#arrived.emit("delivery");
    await answer.after;
    response.writeHead(answer.status ?? 200, answer.headers).end(answer.body);
  }
}
