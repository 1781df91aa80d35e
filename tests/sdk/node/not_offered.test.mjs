/** What the SDK knows and this relay does not have yet is refused by its name, never passed over in silence. */

import { test } from "node:test";

import { client, refused } from "./relay.mjs";

test("a workflow run cannot be cancelled where there are none", async () => {
  await refused(400, () => client.workflow.cancel("wfr_unknown"), "/v2/workflows", "not offered by this version");
});
