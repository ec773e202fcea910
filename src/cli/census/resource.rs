//! From a key of etcd to the resource that it belongs to, and back.

/// Where kube-apiserver's folders are not called as its resources are.
const NAMES: &[(&str, &str)] = &[
    ("controllers", "replicationcontrollers"),
    ("ingress", "ingresses"),
    ("minions", "nodes"),
    ("podsecuritypolicy", "podsecuritypolicies"),
    ("services/endpoints", "endpoints"),
    ("services/specs", "services"),
];

/// Groups of kube-apiserver's own: their objects lie beside those of the core group, in a
/// folder without the group. So do those of other `k8s.io` groups, but for two.
const BUILT_IN: &[&str] = &["apps", "autoscaling", "batch", "extensions", "policy"];

/// The resource of `key`, in kubectl's way: `secrets`, or `widgets.example.com`. Built-in ones
/// come without their group, for etcd does not know it.
pub(super) fn of_key(key: &str, root: &str) -> String {
    let rest = key.strip_prefix(root).unwrap_or(key).trim_start_matches('/');
    let Some((first, below)) = rest.split_once('/') else { return "(no resource)".to_owned() };
    let second = below.split('/').next().unwrap_or_default();
    if first.contains('.') && below.contains('/') {
        return format!("{second}.{first}");
    }
    let known = NAMES.iter().find(|(folder, _)| match folder.split_once('/') {
        Some((a, b)) => first == a && second == b,
        None => first == *folder,
    });
    known.map_or(first, |(_, name)| name).to_owned()
}

/// The folders in which the objects of `resource` may lie.
pub(super) fn folders(resource: &str, root: &str) -> Vec<String> {
    let (name, group) = resource.split_once('.').unwrap_or((resource, ""));
    let known = NAMES.iter().find(|(_, known)| *known == name);
    let plain = known.map_or(name, |(folder, _)| folder);
    let mut folders = Vec::new();
    if group.contains('.') {
        folders.push(format!("{root}{group}/{name}/"));
    }
    if group.is_empty() || BUILT_IN.contains(&group) || group.ends_with("k8s.io") {
        folders.push(format!("{root}{plain}/"));
    }
    folders
}

/// kube-apiserver's `--etcd-prefix` as its keys begin with it.
pub(super) fn root(prefix: &str) -> String {
    format!("{}/", prefix.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_kube_apiserver_are_told_apart_by_resource() {
        for (key, resource) in [
            ("/registry/secrets/default/a", "secrets"),
            ("/registry/deployments/default/a", "deployments"),
            ("/registry/minions/node-1", "nodes"),
            ("/registry/services/specs/default/a", "services"),
            ("/registry/services/endpoints/default/a", "endpoints"),
            ("/registry/example.com/widgets/default/a", "widgets.example.com"),
            (
                "/registry/apiextensions.k8s.io/customresourcedefinitions/widgets.example.com",
                "customresourcedefinitions.apiextensions.k8s.io",
            ),
            ("/registry/health", "(no resource)"),
        ] {
            assert_eq!(of_key(key, "/registry/"), resource, "{key}");
        }
        assert_eq!(of_key("/k/secrets/default/a", &root("/k")), "secrets");
    }

    #[test]
    fn a_resource_is_looked_for_where_kube_apiserver_puts_it() {
        let at = |resource| folders(resource, "/registry/");
        assert_eq!(at("secrets"), ["/registry/secrets/"]);
        assert_eq!(at("nodes"), ["/registry/minions/"]);
        assert_eq!(at("services"), ["/registry/services/specs/"]);
        assert_eq!(at("deployments.apps"), ["/registry/deployments/"]);
        assert_eq!(at("widgets.example.com"), ["/registry/example.com/widgets/"]);
        let both = ["/registry/coordination.k8s.io/leases/", "/registry/leases/"];
        assert_eq!(at("leases.coordination.k8s.io"), both);
        assert!(at("widgets.example").is_empty());
    }
}
