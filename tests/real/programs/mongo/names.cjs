// What a DNS entry for *.db.<public address> does for users: such names are this machine.
const dns = require("node:dns");

const local = (name) => (name.endsWith(".db.localhost") ? "127.0.0.1" : name);
const { lookup } = dns;
dns.lookup = (name, ...rest) => lookup(local(name), ...rest);
const later = dns.promises.lookup;
dns.promises.lookup = (name, ...rest) => later(local(name), ...rest);
