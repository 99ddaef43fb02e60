// MongoDB's Node driver: what tests/real/test_mongodb.py runs it for. Arguments: a connection string. Prints a JSON line.
const { MongoClient } = require("mongodb");

async function main() {
  const client = new MongoClient(process.argv[2], { serverSelectionTimeoutMS: 15000 });
  try {
    const things = client.db("app").collection("node");
    await things.deleteMany({});
    await things.insertMany(Array.from({ length: 2000 }, (_, n) => ({ n, pad: "x".repeat(200) })));
    await things.updateOne({ n: 1 }, { $set: { pad: "y" } });
    const rows = await things.find({ n: { $gte: 1000 } }, { batchSize: 300 }).toArray();
    const one = await things.findOne({ pad: "y" });
    const denied = await client.db("elsewhere").collection("node").findOne({}).catch((error) => error);
    console.log(JSON.stringify({ rows: rows.length, one: one.n, denied: denied.codeName, message: denied.message }));
  } catch (error) {
    console.error(error.message);
    process.exitCode = 1;
  } finally {
    await client.close();
  }
}

main();
