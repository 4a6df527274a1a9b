//! Kubeconfigs as clients read them.

use kube::config::Kubeconfig;

use super::*;

#[test]
fn another_endpoint_rewrites_the_kubeconfig_around_the_same_certificate() {
    let stored = fresh(&cluster(SMALL));
    let changed = cluster_with("prod", SMALL, Found::default(), |spec| {
        spec.networking.endpoint.host = Some("2001:db8::1".to_owned());
    });
    let plan = plan_at(&changed, &stored, start());
    let admin = plan.secrets.iter().find(|planned| name(planned) == "prod-admin-kubeconfig");
    let admin = admin.unwrap();
    assert_eq!((admin.change, admin.issued), (Change::Update, None));
    let now = store(&plan);
    assert_eq!(
        text(&now, "prod-admin-kubeconfig", "tls.crt"),
        text(&stored, "prod-admin-kubeconfig", "tls.crt")
    );
    assert!(text(&now, "prod-admin-kubeconfig", "value").contains("https://[2001:db8::1]:6443"));
}

#[test]
fn without_an_endpoint_there_is_no_admin_kubeconfig_yet() {
    let waiting = cluster_with("prod", LARGE, Found::default(), |spec| {
        spec.networking.endpoint.host = None;
    });
    let plan = plan_at(&waiting, &Stored::new(), start());
    assert!(!plan.secrets.iter().any(|planned| name(planned) == "prod-admin-kubeconfig"));
    let found = Found { load_balancer: Some("198.51.100.4".to_owned()), ..Found::default() };
    let ready = cluster_with("prod", LARGE, found, |spec| {
        spec.networking.endpoint.host = None;
    });
    let stored = store(&plan_at(&ready, &store(&plan), start()));
    let value = text(&stored, "prod-admin-kubeconfig", "value");
    assert!(value.contains("https://198.51.100.4:443"), "{value}");
}

#[test]
fn kubeconfigs_are_what_clients_read() {
    let cluster = cluster(LARGE);
    let stored = fresh(&cluster);
    let admin = text(&stored, "prod-admin-kubeconfig", "value");
    let admin = Kubeconfig::from_yaml(&admin).unwrap();
    assert_eq!(admin.current_context.as_deref(), Some("kubernetes-admin@prod"));
    let server = admin.clusters[0].cluster.as_ref().unwrap();
    assert_eq!(server.server.as_deref(), Some("https://api.prod.example:443"));
    assert!(server.certificate_authority_data.is_some());

    for component in ["controller-manager", "scheduler"] {
        let secret = format!("prod-{component}-kubeconfig");
        let directory = tempfile::tempdir().unwrap();
        for (entry, value) in stored[&secret].data.as_ref().unwrap() {
            std::fs::write(directory.path().join(entry), &value.0).unwrap();
        }
        let read = Kubeconfig::read_from(directory.path().join("kubeconfig")).unwrap();
        let cluster = read.clusters[0].cluster.as_ref().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://prod-api.mc.svc:443"));
        let user = read.auth_infos[0].auth_info.as_ref().unwrap();
        for file in [
            cluster.certificate_authority.as_ref(),
            user.client_certificate.as_ref(),
            user.client_key.as_ref(),
        ] {
            assert!(std::path::Path::new(file.unwrap()).is_file(), "{file:?}");
        }
    }
}
