// Programs that the types of the npm package must take, and mistakes that they must find.
import * as wsqueue from "wsqueue";
import type { GroupMessage, Message, Position, State } from "wsqueue";

const options = { consumers: ["127.0.0.1:10001"], producers: ["127.0.0.1:10002"] } as const;
const client = new wsqueue.WsqueueClient({
  ...options,
  psk: "a key",
  onState: (state: State) => state.retrySeconds?.toFixed(),
  channelBinding: async (address) => (address ? "00" : undefined),
});
new wsqueue.WsqueueClient({ ...options, token: async () => "a token", channelBinding: "none" });
// @ts-expect-error -- there is neither a key nor a token
new wsqueue.WsqueueClient(options);
// @ts-expect-error -- a token stands for the name of its key too
new wsqueue.WsqueueClient({ ...options, token: "a token", name: "billing" });

await client.publish("news", ["a text", new Uint8Array(2), new ArrayBuffer(2)], { headers: { kind: "x" } });
// @ts-expect-error -- numbers are no data
await client.publish("news", 5);
// @ts-expect-error -- a header is a string
await client.publish("news", "x", { headers: { kind: 5 } });

const all: Message[] = [];
const news = client.subscribe("news", (message) => all.push(message), { from: new Date(), onGap: () => {} });
const position: Position | null = news.position;
if (position) client.subscribe("sport", () => {}, { from: position }).close();
// @ts-expect-error -- messages of a topic have no outcome
client.subscribe("news", (message) => message.done());
client.subscribe({ prefix: "sensors/" }, ({ topic, offset }) => topic + offset.toFixed(), { from: -1 });
// @ts-expect-error -- a prefix has no groups
client.subscribe({ prefix: "sensors/" }, () => {}, { group: "billing" });

const member = client.subscribe("jobs", (job: GroupMessage) => job.again(60), { group: "billing", prefetch: 1 });
await member.flush();
await member.close();
// @ts-expect-error -- a group has no onGap
client.subscribe("jobs", () => {}, { group: "billing", onGap: () => {} });
const reader = client.subscribe("orders", (order) => order.done(), { reader: "billing", autoDone: false });
await reader.ready;
// @ts-expect-error -- a reader does not give up messages
client.subscribe("orders", (order) => order.reject("x"), { reader: "billing" });

try {
  wsqueue.unpack(wsqueue.pack({ numbers: [1, null, true], bytes: new Uint8Array() }));
} catch (error) {
  if (error instanceof wsqueue.PublishError) error.code.toString();
}
wsqueue.consumerOf("news", wsqueue.topicHash("news") + wsqueue.MAX_TOPICS).toFixed();
client.close();
