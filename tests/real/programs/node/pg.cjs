// node-postgres: what tests/real/test_postgres_drivers.py runs it for. Arguments: a JSON object for `new Client`, in which
// `ssl` may name files. Prints one JSON line.
const { readFileSync } = require("node:fs");
const pg = require("pg");

const options = JSON.parse(process.argv[2]);
if (options.ssl) {
  for (const name of ["ca", "cert", "key"]) options.ssl[name] = readFileSync(options.ssl[name], "utf8");
}
async function main() {
  const client = new pg.Client(options);
  try {
    await client.connect();
    const who = await client.query("select current_user || '/' || current_database() as who");
    const named = { name: "node-named", text: "select $1::int + $2::int as sum", values: [40, 2] };
    const first = await client.query(named);
    const second = await client.query({ ...named, values: [1, 2] });
    const many = await client.query("select i, repeat('x', 500) as pad from generate_series(1, $1) i", [5000]);
    const heard = new Promise((resolve) => client.once("notification", (one) => resolve(one.payload)));
    await client.query("listen monoport");
    await client.query("select pg_notify('monoport', 'from node')");
    const failed = await client.query("select 1/0").catch((error) => error.code);
    console.log(
      JSON.stringify({
        who: who.rows[0].who,
        sums: [first.rows[0].sum, second.rows[0].sum],
        rows: many.rows.length,
        heard: await heard,
        failed,
      }),
    );
    await client.end();
  } catch (error) {
    console.error(error.message);
    process.exit(1);
  }
}

main();
