// mysql2: what tests/real/test_mysql.py runs it for. Arguments: a JSON object for `createConnection`, in which `ssl` may name
// files. Prints one JSON line.
const { readFileSync } = require("node:fs");
const mysql = require("mysql2/promise");

const options = JSON.parse(process.argv[2]);
if (options.ssl) {
  for (const name of ["ca", "cert", "key"]) options.ssl[name] = readFileSync(options.ssl[name], "utf8");
}
async function main() {
  try {
    const client = await mysql.createConnection(options);
    const [[who]] = await client.query("select concat(substring_index(current_user(), '@', 1), '/', database()) as who");
    const [[first]] = await client.execute("select ? + ? as sum", [40, 2]);
    const [[second]] = await client.execute("select ? + ? as sum", [1, 2]);
    const [many] = await client.query("select seq, repeat('x', 500) as pad from seq_1_to_5000");
    const failed = await client.query("select nothing").catch((error) => error.errno);
    const denied = await client.changeUser({ user: "reader" }).catch((error) => error.errno);
    const sums = [Number(first.sum), Number(second.sum)];
    console.log(JSON.stringify({ who: who.who, sums, rows: many.length, failed, denied }));
    await client.end();
  } catch (error) {
    console.error(error.message);
    process.exit(1);
  }
}

main();
