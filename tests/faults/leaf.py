"""Leaves that are about to end, made by hand with openssl."""
import datetime
import os
import pathlib
import subprocess
import tempfile
import time


def age(files, ca_folder, names, since, seconds):
    """Puts a leaf in the place of the one in a folder, for the same key, that began so many seconds ago and ends in so many.
    `names`: its common name, and what its subjectAltName says as openssl writes it."""
    end = "-----END CERTIFICATE-----\n"
    signer = (ca_folder / "intermediate/ca-chain.pem").read_text().split(end)[0] + end
    now = datetime.datetime.now(datetime.timezone.utc)
    dates = [(now + datetime.timedelta(seconds=each)).strftime("%y%m%d%H%M%SZ") for each in (-since, seconds)]
    with tempfile.TemporaryDirectory(prefix="mesh-openssl-") as made:
        openssl = pathlib.Path(made)
        (openssl / "index.txt").touch()
        (openssl / "serial").write_text(f"{time.time_ns():032x}")
        (openssl / "ca.crt").write_text(signer)
        (openssl / "cnf").write_text(f"""
[ca]\ndefault_ca = x\n[p]\ncommonName = supplied
[x]\ndatabase = {openssl}/index.txt\nserial = {openssl}/serial\nnew_certs_dir = {openssl}\ncertificate = {openssl}/ca.crt
private_key = {ca_folder}/intermediate/intermediate.key\ndefault_md = sha256\npolicy = p\nx509_extensions = v
[v]\nbasicConstraints = critical, CA:FALSE\nkeyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth\nauthorityKeyIdentifier = keyid
subjectAltName = {names[1]}
""")
        for command in [["req", "-new", "-key", files / "node.key", "-subj", f"/CN={names[0]}", "-out", openssl / "csr"],
                        ["ca", "-batch", "-notext", "-config", openssl / "cnf", "-in", openssl / "csr", "-out",
                         openssl / "crt", "-startdate", dates[0], "-enddate", dates[1]]]:
            subprocess.run(["openssl", *command], check=True, capture_output=True)
        draft = files / "node.crt.new"
        draft.write_text((openssl / "crt").read_text() + signer)
        os.rename(draft, files / "node.crt")
