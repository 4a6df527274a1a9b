//! Both sides of TLS over a socket, with certificates made for the test.

#![expect(clippy::unwrap_used, reason = "a test states its expectation by unwrapping")]

use std::path::{Path, PathBuf};

use megacluster_service::tls::{
    ClientAuth, ClientTls, ClientTlsFiles, ServerTls, ServerTlsFiles, TlsError, peer_identity,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    Authority { pem, issuer: Issuer::new(params, key) }
}

fn leaf(dir: &Path, name: &str, authority: &Authority) -> (PathBuf, PathBuf) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationName, "system:masters");
    let cert = params.signed_by(&key, &authority.issuer).unwrap();
    let paths = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    std::fs::write(&paths.0, cert.pem()).unwrap();
    std::fs::write(&paths.1, key.serialize_pem()).unwrap();
    paths
}

/// The name that the server saw, or why there was no connection.
async fn connect(server: &ServerTls, client: &ClientTls) -> Result<Option<String>, std::io::Error> {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let acceptor = server.acceptor();
    let accept = async move {
        let (stream, _) = listener.accept().await?;
        let mut stream = acceptor.accept(stream).await?;
        stream.write_all(b"x").await?;
        stream.flush().await?;
        let name = stream
            .get_ref()
            .1
            .peer_certificates()
            .map(|chain| peer_identity(&chain[0]).unwrap().common_name);
        stream.shutdown().await?;
        Ok::<_, std::io::Error>(name)
    };
    let connector = tokio_rustls::TlsConnector::from(client.config());
    let dial = async move {
        let stream = tokio::net::TcpStream::connect(address).await?;
        let name = "localhost".try_into().unwrap();
        let mut stream = connector.connect(name, stream).await?;
        stream.read_u8().await
    };
    let (accepted, dialled) = tokio::join!(accept, dial);
    let name = accepted?;
    dialled?;
    Ok(name)
}

#[tokio::test]
async fn the_right_certificate_passes_and_others_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (authority(), authority());
    let ca = dir.path().join("ca.crt");
    std::fs::write(&ca, &ours.pem).unwrap();
    let (cert, key) = leaf(dir.path(), "server", &ours);
    let files = |client_auth| ServerTlsFiles {
        cert: cert.clone(),
        key: key.clone(),
        client_ca: Some(ca.clone()),
        client_auth,
    };
    let required = ServerTls::new(files(ClientAuth::Required), &[b"h2"]).unwrap();
    let optional = ServerTls::new(files(ClientAuth::Optional), &[b"h2"]).unwrap();
    let client = |pair: Option<(PathBuf, PathBuf)>| {
        let (cert, key) = pair.unzip();
        ClientTls::new(ClientTlsFiles { ca: Some(ca.clone()), cert, key }, &[b"h2"]).unwrap()
    };
    let good = client(Some(leaf(dir.path(), "good", &ours)));
    let bad = client(Some(leaf(dir.path(), "bad", &theirs)));
    let none = client(None);

    assert_eq!(connect(&required, &good).await.unwrap().as_deref(), Some("good"));
    assert!(connect(&required, &bad).await.is_err());
    assert!(connect(&required, &none).await.is_err());
    assert_eq!(connect(&optional, &good).await.unwrap().as_deref(), Some("good"));
    assert!(connect(&optional, &bad).await.is_err());
    assert_eq!(connect(&optional, &none).await.unwrap(), None);
}

#[test]
fn what_is_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let ours = authority();
    let (cert, key) = leaf(dir.path(), "server", &ours);
    let empty = dir.path().join("empty.crt");
    std::fs::write(&empty, "").unwrap();
    let missing = dir.path().join("missing.key");
    let files = |cert: &Path, key: &Path, client_auth| ServerTlsFiles {
        cert: cert.to_owned(),
        key: key.to_owned(),
        client_ca: None,
        client_auth,
    };
    let message = |files| ServerTls::new(files, &[]).unwrap_err().to_string();
    assert!(message(files(&empty, &key, ClientAuth::None)).contains("empty.crt: no CERTIFICATE"));
    assert!(message(files(&cert, &missing, ClientAuth::None)).contains("missing.key"));
    assert!(matches!(
        ServerTls::new(files(&cert, &key, ClientAuth::Required), &[]),
        Err(TlsError::NoClientCa)
    ));
    let (_, other) = leaf(dir.path(), "other", &ours);
    assert!(message(files(&cert, &other, ClientAuth::None)).contains("server.crt"));
    let half = ClientTlsFiles { ca: None, cert: Some(cert), key: None };
    assert!(matches!(ClientTls::new(half, &[]), Err(TlsError::Half { .. })));
}

#[test]
fn an_identity_is_the_subject() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, _) = leaf(dir.path(), "admin", &authority());
    let der = rustls_pki_types::CertificateDer::from_pem_file(cert).unwrap();
    let identity = peer_identity(&der).unwrap();
    assert_eq!(identity.common_name, "admin");
    assert_eq!(identity.organizations, ["system:masters"]);
}
