// Orders that are paid for later: each is a job this application publishes to itself, and does when called.
import express from "express";
import { Client, Receiver } from "@upstash/qstash";

const queue = new Client(); // QSTASH_URL, QSTASH_TOKEN
const receiver = new Receiver(); // QSTASH_CURRENT_SIGNING_KEY, QSTASH_NEXT_SIGNING_KEY
const self = process.env.APP_URL;
const orders = new Map();

/** Lets through only what was signed for this very address. */
async function signed(request, response, next) {
  try {
    await receiver.verify({
      signature: request.get("Upstash-Signature") ?? "",
      body: request.body,
      url: self + request.originalUrl,
    });
  } catch {
    return response.sendStatus(401);
  }
  request.body = JSON.parse(request.body);
  next();
}

const app = express();
app.use("/jobs", express.text({ type: "*/*" }), signed);
app.use(express.json());

app.post("/orders", async (request, response) => {
  const { id, card } = request.body;
  orders.set(id, { state: "ordered" });
  const { messageId } = await queue.publishJSON({
    url: `${self}/jobs/pay`,
    body: { id, card },
    retries: 1,
    retryDelay: "100",
    deduplicationId: `pay-${id}`,
    failureCallback: `${self}/jobs/unpaid`,
  });
  response.status(202).json({ messageId });
});

app.get("/orders/:id", (request, response) => response.json(orders.get(request.params.id)));

app.post("/jobs/pay", (request, response) => {
  const { id, card } = request.body;
  if (card === "empty") return response.sendStatus(402);
  orders.set(id, { state: "paid", message: request.get("Upstash-Message-Id") });
  response.sendStatus(200);
});

app.post("/jobs/unpaid", (request, response) => {
  const { id } = JSON.parse(Buffer.from(request.body.sourceBody, "base64"));
  orders.set(id, { state: "unpaid", status: request.body.status, deadLetter: request.body.dlqId });
  response.sendStatus(200);
});

app.listen(new URL(self).port, "127.0.0.1");
