import axios from "axios";
import { httpChecks, main } from "./driver.mjs";

function connect(way) {
  const client = axios.create({
    baseURL: way.url, headers: way.headers, socketPath: way.unix, responseType: "stream", validateStatus: () => true,
    maxBodyLength: Infinity,
  });
  return async (method, path, body) => {
    const answer = await client.request({ method, url: path, data: body });
    return { status: answer.status, pieces: answer.data };
  };
}

main(httpChecks(connect));
