// A client without our code: it loads the published proto, publishes, and consumes as a member of a group.
// node client.js ADDRESS PROTO TOKEN, with NODE_PATH naming its packages. Tells what it does in lines of JSON.
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, proto, token] = process.argv.slice(2);
const { tidings } = grpc.loadPackageDefinition(loader.loadSync(proto, { longs: Number, enums: String }));
const bus = new tidings.v1.Bus(address, grpc.credentials.createInsecure());
const metadata = new grpc.Metadata();
metadata.set("authorization", `Bearer ${token}`);

const tell = (line) => console.log(JSON.stringify(line));

function publish() {
  const messages = [1, 2, 3].map((n) => ({ topic: "orders.placed", key: "k", body: Buffer.from(JSON.stringify({ n })) }));
  bus.publish({ messages }, metadata, (error, response) => {
    if (error) throw error;
    tell({ published: response.ids.length });
    refused();
  });
}

function refused() {
  bus.publish({ messages: [{ topic: "secret.plans", body: Buffer.from("{}") }] }, metadata, (error) => {
    const details = error.metadata.get("tidings-error-bin").length;
    tell({ refused: grpc.status[error.code], details });
  });
}

const stream = bus.subscribe(metadata);
stream.write({ open: { pattern: "orders.>", group: "node.bill", credit: 2 } });
const done = [];
stream.on("data", (response) => {
  if (response.opened) publish();
  for (const { message, number, attempt } of response.messages ?? []) {
    const { n } = JSON.parse(message.body);
    tell({ n, attempt, type: message.type });
    if (n === 2 && attempt === 1) {
      stream.write({ failed: [{ number, fate: "RETRY", delay: 0.01, why: "not yet" }] });
    } else {
      stream.write({ acknowledged: [number] });
      done.push(n);
    }
    if (done.length === 3) stream.end();
  }
});
stream.on("end", () => bus.close());
