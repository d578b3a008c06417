// Node.js' own http2 client: uploads more than it may, again and again on one session, and asks for something in between.
// Arguments: base URL, path of the upload, its bytes, path of the other request, rounds. Prints "done" or what went wrong.
'use strict';
const http2 = require('http2');

const [base, upload, bytes, other, rounds] = process.argv.slice(2);
const session = http2.connect(base);
session.on('error', (error) => fail(`session: ${error}`));
session.on('goaway', (code) => fail(`goaway ${code}`));

function fail(text) {
  console.log(text);
  process.exit(1);
}

function ask(headers, body) {
  return new Promise((resolve) => {
    const request = session.request(headers);
    let status, text = '';
    request.on('error', (error) => fail(`${headers[':path']}: ${error}`));
    request.on('response', (answer) => { status = answer[':status']; });
    request.on('data', (data) => { text += data; });
    request.on('end', () => resolve([status, text]));
    request.end(body);
  });
}

(async () => {
  setTimeout(() => fail('it hangs'), 60000).unref();
  const body = Buffer.alloc(Number(bytes));
  for (let round = 0; round < Number(rounds); round++) {
    const announced = round % 2 ? { 'content-length': body.length } : {};
    const [refused, text] = await ask({ ':method': 'POST', ':path': upload, ...announced }, body);
    if (refused !== 413 || !text.includes('body_too_large')) fail(`round ${round}: ${refused} ${text}`);
    const [status] = await ask({ ':path': other });
    if (status !== 200) fail(`round ${round}: the next request got ${status}`);
  }
  console.log('done');
  session.close();
})();
